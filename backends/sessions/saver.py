"""What sessions have become, behind their answers into the store: nothing waits for it, and no step is slowed by it.

A finished answer leaves a transcript, due once its session has been idle for a while, or at once when few blocks are
left that can be taken without losing what is saved nowhere. Encoding runs in a thread that gets only time nobody else
wants, unless blocks are scarce. The line is bounded: the oldest is dropped, and counted.

Refuses to know prompts, steps and the codec.
"""

from __future__ import annotations

import asyncio
import os
import threading
from array import array
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from backends.engine import Engine
from backends.engine.keeping import Kv
from backends.engine.kvcodec import CHUNK_TOKENS
from backends.engine.planning import SessionSettings
from backends.engine.transcript import Transcript
from backends.peer import log
from backends.sessions.link import Link
from backends.sessions.orders import Orders
from backends.sessions.tally import Tally
from sessioncache.client import Found, Prefix, StoreClient, StoreError

MOST_WAITING = 1024
HELD_AT_ONCE = 4  # chunks that are held and encoded while earlier ones are stored
RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Due:
    """A transcript, when to save it, and when to give it up."""

    transcript: Transcript
    at: float
    until: float


class Saver:
    """Saves transcripts one after the other. Lives on the loop's thread."""

    def __init__(self, kv: Kv, link: Link, orders: Orders, tally: Tally, settings: SessionSettings) -> None:
        self._kv, self._link, self._orders, self._tally, self._settings = kv, link, orders, tally, settings
        self._line: OrderedDict[tuple[str, str, bytes], Due] = OrderedDict()
        self._grown = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._calm = ThreadPoolExecutor(1, "encode", initializer=yield_to_all)
        self._urgent = ThreadPoolExecutor(1, "encode-now")
        self._is_pressed = self._is_flushing = False

    @property
    def waiting(self) -> int:
        """How many transcripts stand in line."""
        return len(self._line)

    def offer(self, transcript: Transcript) -> None:
        """Let a transcript stand in line, in the place of an earlier one of its conversation."""
        now = asyncio.get_running_loop().time()
        key = (transcript.tenant, transcript.session, transcript.chain[-1])
        for earlier, due in list(self._line.items()):
            if earlier[:2] == key[:2] and transcript.goes_on_from(due.transcript):
                del self._line[earlier]
        self._line[key] = Due(transcript, now + self._settings.write_behind_s, now + self._patience_s)
        if len(self._line) > MOST_WAITING:
            self._drop(self._line.popitem(last=False)[1])
        self._idle.clear()
        self._grown.set()

    def press(self, *, is_pressed: bool) -> None:
        """Say whether blocks are scarce: then nothing waits until it is due."""
        self._is_pressed = is_pressed or self._is_flushing
        if self._is_pressed:
            self._grown.set()

    async def flush(self) -> None:
        """Save all that stands in line now."""
        self._is_flushing = True
        self.press(is_pressed=True)
        await self._idle.wait()

    async def run(self) -> None:
        """Save what is due, for ever."""
        while True:
            key, due = await self._next()
            try:
                await self._save(due.transcript)
            except Exception as exc:  # noqa: BLE001 - the top of the task: a fault in one transcript ends no other's saving
                self._failed(key, due, exc)
            else:
                self._unguard(due.transcript)
            if not self._line:
                self._idle.set()

    @property
    def _patience_s(self) -> float:
        """How long blocks are guarded for a store that does not take them."""
        return self._settings.write_behind_s + self._settings.active_s

    async def _next(self) -> tuple[tuple[str, str, bytes], Due]:
        """Wait for the first in line and take it out."""
        while True:
            self._grown.clear()
            wait_s: float | None = None
            if self._line:
                due = next(iter(self._line.values()))
                wait_s = 0.0 if self._is_pressed else due.at - asyncio.get_running_loop().time()
                if wait_s <= 0:
                    return self._line.popitem(last=False)
            try:
                async with asyncio.timeout(wait_s):
                    await self._grown.wait()
            except TimeoutError:
                continue

    async def _save(self, transcript: Transcript) -> None:
        """Save the chunks that the store misses, as far as they are still in blocks; then note the session."""
        whole = await self._save_chunks(transcript, transcript.tokens)
        if whole < transcript.chunks:
            self._tally.add(dropped_saves=1)
        if 0 < whole < transcript.chunks:
            await self._save_chunks(transcript, transcript.tokens[: whole * CHUNK_TOKENS])

    async def _save_chunks(self, transcript: Transcript, tokens: array[int]) -> int:
        """Return how many leading chunks are stored; the session is noted when all of them are."""
        loop = asyncio.get_running_loop()
        prefix = Prefix(transcript.tenant, self._kv.model, self._kv.codec.id, tokens)
        async with self._link.looked_up(prefix, self._settings.fetch_timeout_s) as (client, found):
            began = loop.time()
            async with asyncio.timeout(self._settings.fetch_timeout_s):
                missing = await client.missing(found.handle)
            for first in range(0, len(missing), HELD_AT_ONCE):
                several = missing[first : first + HELD_AT_ONCE]
                if (gone := await self._save_several(client, found, several, transcript)) is not None:
                    return gone
            summary = {"tokens": len(tokens), "codec": self._kv.codec.id}
            async with asyncio.timeout(self._settings.fetch_timeout_s):
                await client.note(found.handle, transcript.session, summary=summary)
            self._tally.add(saves=1, save_s=loop.time() - began)
        return len(tokens) // CHUNK_TOKENS

    async def _save_several(
        self, client: StoreClient, found: Found, chunks: list[int], transcript: Transcript
    ) -> int | None:
        """Encode chunks and store them; return the first whose blocks are gone."""
        held = await self._held(chunks, transcript)
        saving = [
            asyncio.create_task(self._save_chunk(client, found, chunk, ids))
            for chunk, ids in zip(chunks, held, strict=True)
            if ids is not None
        ]
        await asyncio.gather(*saving, return_exceptions=True)
        for task in saving:
            task.result()
        return next((chunk for chunk, ids in zip(chunks, held, strict=True) if ids is None), None)

    async def _held(self, chunks: list[int], transcript: Transcript) -> list[list[int] | None]:
        """Hold the blocks of several chunks between two steps."""
        per_chunk = CHUNK_TOKENS // self._kv.runner.block_tokens
        keys = [transcript.chain[chunk * per_chunk : (chunk + 1) * per_chunk] for chunk in chunks]

        def hold(engine: Engine) -> list[list[int] | None]:
            return [engine.lending.hold(each) for each in keys]

        def release(engine: Engine, held: list[list[int] | None]) -> None:
            for ids in held:
                engine.lending.release(ids or [])

        return await self._orders.ask(hold, release)

    async def _save_chunk(self, client: StoreClient, found: Found, chunk: int, held: list[int]) -> None:
        """Encode a chunk beside the steps, let go of its blocks, and store it."""
        thread = self._urgent if self._is_pressed else self._calm
        encoding = thread.submit(self._kv.encode, chunk, held)
        encoding.add_done_callback(lambda _: self._orders.tell(lambda engine: engine.lending.release(held)))
        layers = await asyncio.wrap_future(encoding)
        async with asyncio.timeout(self._settings.fetch_timeout_s):
            await client.save(found.handle, chunk, layers)
        self._tally.add(saved_tokens=CHUNK_TOKENS, saved_bytes=sum(map(len, layers)))

    def _failed(self, key: tuple[str, str, bytes], due: Due, exc: Exception) -> None:
        """Try again later, unless it has been refused or tried for too long, or one that goes on stands in line."""
        self._tally.add(save_failures=1)
        log("session.save_failed", error=f"{type(exc).__name__}: {exc}")
        now = asyncio.get_running_loop().time()
        is_final = not isinstance(exc, StoreError | TimeoutError) or getattr(exc, "kind", "") == "refused"
        later = [other for of, other in self._line.items() if of[:2] == key[:2]]
        if any(other.transcript.goes_on_from(due.transcript) for other in later):
            return
        if is_final or now > due.until or self._is_flushing:
            self._drop(due)
        else:
            self._line[key] = replace(due, at=now + RETRY_AFTER_S)

    def _drop(self, due: Due) -> None:
        self._tally.add(dropped_saves=1)
        self._unguard(due.transcript)

    def _unguard(self, transcript: Transcript) -> None:
        self._orders.tell(lambda engine: engine.lending.guard(transcript.chain, is_guarded=False))


def yield_to_all() -> None:
    """Give the calling thread only time that nobody else wants, where the system knows such a thing."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
