"""A prompt's stored beginning into blocks, before the prompt is computed: looked up, weighed, fetched, decoded.

Chunks are fetched a few at a time and decoded in a thread beside the steps, in order; whatever contiguous beginning has
arrived at the deadline, or before a chunk that fails, is used, and the rest is computed. So a broken store costs
time within the deadline and never an answer. Of equal prefixes one is restored and the others wait for it.

Refuses to know calls and what becomes of the blocks.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from backends.engine import Engine
from backends.engine.answer import NOTHING, Restored
from backends.engine.keeping import Kv
from backends.engine.kvcodec import CHUNK_TOKENS
from backends.engine.planning import SessionSettings
from backends.peer import log
from backends.sessions.costs import Rates, colder
from backends.sessions.link import Link
from backends.sessions.orders import Orders
from backends.sessions.tally import Tally
from batching.blocks import chain_of, root_key
from batching.lending import Loan
from sessioncache.client import Found, Prefix, StoreClient, StoreError

ROOM_TIMEOUT_S = 30.0  # how long to wait for blocks: who computes would have to wait for them as well
LOOK_AGAIN_S = 0.25
TRIED_ANYWAY = 8  # one restore in so many that seem not to pay is done, or what was measured once would stay for ever
WINDOW = 3  # chunks on their way at once; all at once would bring the first one late
LOOKUP_TIMEOUT_S = 2.0
SPARE_SHARE = 8  # an eighth of all blocks stays free for those who run


@dataclass(slots=True)
class Fetched:
    """How far a restore has come: whole chunks that are in their blocks, and their bytes as stored."""

    chunks: int = 0
    bytes: int = 0


class Restorer:
    """Restores prefixes into the blocks of one engine. Lives on the loop's thread."""

    def __init__(
        self, kv: Kv, link: Link, orders: Orders, rates: Rates, tally: Tally, settings: SessionSettings
    ) -> None:
        self._kv, self._link, self._orders = kv, link, orders
        self._rates, self._tally, self._settings = rates, tally, settings
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._flying: dict[bytes, asyncio.Event] = {}
        self._next = asyncio.Lock()  # who waits for room first gets it first
        self.roomy = asyncio.Event()
        self._declined = 0  # restores that seemed not to pay since the last one that was done

    async def restore(self, tenant: str, tokens: list[int]) -> Restored:
        """Bring what is stored of a prompt into blocks, as far as that is faster than computing it."""
        whole = len(tokens) // CHUNK_TOKENS * CHUNK_TOKENS
        if whole < max(CHUNK_TOKENS, self._settings.min_restore_tokens):
            return NOTHING
        words = array("I", tokens[:whole])
        prefix = Prefix(tenant, self._kv.model, self._kv.codec.id, words)
        chain = chain_of(root_key(tenant), words, self._kv.runner.block_tokens)
        try:
            async with self._alone(chain[-1]), self._link.looked_up(prefix, LOOKUP_TIMEOUT_S) as (client, found):
                return await self._weighed(client, found, chain)
        except (StoreError, TimeoutError) as exc:
            self._failed("lookup", exc)
            return NOTHING
        except asyncio.CancelledError:
            self._orders.tell(lambda engine: engine.lending.guard(chain, is_guarded=False))
            raise

    @asynccontextmanager
    async def _alone(self, key: bytes) -> AsyncIterator[None]:
        """Wait for another restore of the same prefix, named by its last block, at most as long as it may take."""
        if (flying := self._flying.get(key)) is not None:
            async with asyncio.timeout(self._settings.fetch_timeout_s):
                await flying.wait()
            yield
            return
        landed = self._flying[key] = asyncio.Event()
        try:
            yield
        finally:
            del self._flying[key]
            landed.set()

    async def _weighed(self, client: StoreClient, found: Found, chain: list[bytes]) -> Restored:
        """Borrow the blocks for what is stored and not known, if fetching pays."""
        stored = len(found.tiers) * CHUNK_TOKENS
        if not stored:
            return NOTHING
        chain = chain[: stored // self._kv.runner.block_tokens]
        is_tried = self._declined >= TRIED_ANYWAY - 1

        def worth(start: int) -> bool:
            first = start // CHUNK_TOKENS
            restore_s = self._rates.restore_s(found.tiers[first:], found.bytes[first:])
            return is_tried or restore_s < self._rates.compute_s(stored - start)

        loan, known = await self._borrowed(chain, worth)
        if loan is not None:
            self._declined = 0
            return await self._filled(client, found, loan, chain, known)
        self._declined += known < stored
        self._tally.add(recomputed_instead=int(known < stored))
        return Restored(known, known, guarded=tuple(chain)) if known >= stored else NOTHING

    async def _borrowed(self, chain: list[bytes], worth: Callable[[int], bool]) -> tuple[Loan | None, int]:
        """Borrow blocks for what is not known of a chain, and wait for them a while; also say how much is known."""

        def borrow(engine: Engine, *, whole: bool) -> tuple[Loan | None, int, bool]:
            spare = engine.blocks.total // SPARE_SHARE
            known = engine.lending.known_tokens(chain)
            fits = engine.lending.has_room(chain, spare=spare) or len(chain) + spare > engine.blocks.total
            if whole and not fits and worth(known):
                return None, known, False
            loan = engine.lending.lend(chain, unit=CHUNK_TOKENS, spare=spare, worth=worth)
            if loan is None and known == len(chain) * engine.blocks.block_tokens:
                engine.lending.guard(chain, is_guarded=True)
            return loan, known, True

        try:
            async with asyncio.timeout(ROOM_TIMEOUT_S), self._next:
                while True:
                    self.roomy.clear()
                    loan, known, is_final = await self._orders.ask(partial(borrow, whole=True), _returned)
                    if is_final:
                        return loan, known
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self.roomy.wait(), LOOK_AGAIN_S)
        except TimeoutError:
            loan, known, _ = await self._orders.ask(partial(borrow, whole=False), _returned)
            return loan, known

    async def _filled(self, client: StoreClient, found: Found, loan: Loan, chain: list[bytes], known: int) -> Restored:
        """Fill a loan as far as it goes, and settle it whatever happens."""
        loop, fetched, failure = asyncio.get_running_loop(), Fetched(), None
        began = loop.time()
        try:
            async with asyncio.timeout(self._rates.deadline_s(loan.end - loan.start, self._settings.fetch_timeout_s)):
                await self._fill(client, found, loan, fetched)
        except (StoreError, TimeoutError, ValueError) as exc:
            failure = exc
        finally:
            # Behind whatever is still decoded into these blocks: the thread takes one thing after the other.
            filled = fetched.chunks * CHUNK_TOKENS
            settled = self._decoding.submit(self._orders.tell, lambda engine: engine.lending.settle(loan, filled))
        await asyncio.wrap_future(settled)
        if failure is not None:
            self._failed("fetch", failure)
        end = loan.start + fetched.chunks * CHUNK_TOKENS
        guarded = tuple(chain[: end // self._kv.runner.block_tokens])
        if end <= known:
            return Restored(known, known, guarded=guarded)
        took_s = loop.time() - began
        self._tally.add(restores=1, restored_tokens=end - known, restored_bytes=fetched.bytes, restore_s=took_s)
        first, last = loan.start // CHUNK_TOKENS, end // CHUNK_TOKENS
        return Restored(known, end, colder(found.tiers[first:last]), guarded)

    async def _fill(self, client: StoreClient, found: Found, loan: Loan, fetched: Fetched) -> None:
        """Decode the chunks of a loan in order, while the next ones come."""
        chunks = deque(range(loan.start // CHUNK_TOKENS, loan.end // CHUNK_TOKENS))
        coming: deque[asyncio.Task[list[memoryview[int]]]] = deque()
        try:
            while chunks or coming:
                while chunks and len(coming) < WINDOW:
                    coming.append(asyncio.create_task(self._fetch(client, found, chunks.popleft())))
                layers = await coming.popleft()
                await self._decode(loan, fetched.chunks, layers)
                fetched.chunks += 1
                fetched.bytes += sum(map(len, layers))
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def _fetch(self, client: StoreClient, found: Found, chunk: int) -> list[memoryview[int]]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        layers = await client.fetch(found.handle, chunk)
        self._rates.learn_fetch(found.tiers[chunk], sum(map(len, layers)), loop.time() - began)
        return layers

    async def _decode(self, loan: Loan, number: int, layers: list[memoryview[int]]) -> None:
        per_chunk = CHUNK_TOKENS // self._kv.runner.block_tokens
        blocks = loan.blocks[number * per_chunk : (number + 1) * per_chunk]
        loop = asyncio.get_running_loop()
        began = loop.time()
        await loop.run_in_executor(self._decoding, self._kv.decode, loan.start // CHUNK_TOKENS + number, layers, blocks)
        self._rates.decode.learn(CHUNK_TOKENS, loop.time() - began)

    def _failed(self, what: str, exc: Exception) -> None:
        self._tally.add(restore_failures=1)
        log("session.restore_failed", what=what, error=str(exc) or type(exc).__name__)


def _returned(engine: Engine, made: tuple[Loan | None, int, bool]) -> None:
    """Give back what nobody waits for any more."""
    if made[0] is not None:
        engine.lending.settle(made[0], 0)
