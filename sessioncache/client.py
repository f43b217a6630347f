"""The session store as its callers see it: one connection, many requests in flight, every failure a StoreError.

A worker asks what is stored of a prefix, fetches and saves chunks and notes sessions; the gateway lists, erases and
moves them. Callers set their own deadlines (`asyncio.timeout`): a request given up is forgotten here, and its late
answer is dropped.

Refuses to know tiers, keys and what the payloads mean.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from sessioncache import records, wire
from sessioncache.stream import Stream
from sessioncache.wire import Octets

Kind = Literal["miss", "refused", "broken", "unreachable"]
Answer: TypeAlias = "tuple[Any, memoryview[int]]"


class StoreError(Exception):
    """What the store did not do.

    miss         what was asked for is not there, or is not what it should be
    refused      asked wrongly, or not allowed: an erased session, a bound, a handle that was closed
    broken       the store has a fault; its log says more
    unreachable  the store, or the tier that it needs, does not answer
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is looked up or saved: only whole chunks of 256 tokens are ever stored.

    model          fingerprint of what computes the KV
    codec          the codec's id, with a digest of its parameters
    common_tokens  first tokens that the operator declared common to all tenants
    """

    tenant: str
    model: str
    codec: str
    tokens: array[int]
    common_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What is stored of a prefix: for each leading chunk its tier ("memory", "redis" or "cold") and its size.

    `handle` names the prefix on this connection, until `close`.
    """

    handle: int
    tiers: tuple[str, ...]
    bytes: tuple[int, ...]


class StoreClient:
    """One connection to a store. Made by `connect`, ended by `aclose`."""

    def __init__(self) -> None:
        self._stream = Stream(self)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._last_id = 0

    @classmethod
    async def connect(cls, path: Path | str) -> StoreClient:
        """Connect to the store's socket; StoreError when nobody is there."""
        client = cls()
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: client._stream, str(path))
        except OSError as exc:
            raise StoreError("unreachable", f"the session store does not answer: {exc.strerror or exc}") from exc
        return client

    async def aclose(self) -> None:
        """End the connection; what is under way fails as unreachable."""
        self._stream.abort()
        await self._stream.over()

    @property
    def is_connected(self) -> bool:
        """Whether answers can still come."""
        return self._stream.is_open

    # What a worker asks

    async def lookup(self, prefix: Prefix) -> Found:
        """Say which leading chunks of a prefix can be restored, and from where."""
        asked = {"tenant": prefix.tenant, "model": prefix.model, "codec": prefix.codec, "common": prefix.common_tokens}
        told, _ = await self._ask("lookup", asked, [prefix.tokens.tobytes()])
        return Found(told["handle"], tuple(told["tiers"]), tuple(told["bytes"]))

    async def fetch(self, handle: int, chunk: int, *, first_layer: int = 0) -> list[memoryview[int]]:
        """Return a chunk's layers as views; its token ids were compared. StoreError "miss" when it is gone."""
        told, body = await self._ask("fetch", {"handle": handle, "chunk": chunk, "first_layer": first_layer})
        return wire.cut(body, told["sizes"])

    async def missing(self, handle: int) -> list[int]:
        """Return the whole chunks of a prefix that no tier holds yet."""
        told, _ = await self._ask("missing", {"handle": handle})
        return list(told["chunks"])

    async def save(self, handle: int, chunk: int, layers: Sequence[Octets]) -> None:
        """Store a chunk; once this returns it survives the end of the store. Saving again is fine."""
        await self._ask("save", {"handle": handle, "chunk": chunk, "sizes": [len(each) for each in layers]}, layers)

    async def note(self, handle: int, session: str, *, summary: Mapping[str, Any]) -> str:
        """Say that a session is now made of this prefix; return the name that the store knows it by.

        Refused for a session that was erased: what was saved for it alone is deleted again.
        """
        told, _ = await self._ask("note", {"handle": handle, "session": session, "summary": dict(summary)})
        return str(told["name"])

    async def close(self, handle: int) -> None:
        """Forget a handle; one that is not known is fine."""
        await self._ask("close", {"handle": handle})

    async def stats(self) -> dict[str, Any]:
        """Return what the store holds and has counted."""
        return dict((await self._ask("stats", {}))[0])

    # What the gateway asks

    async def sessions(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """List sessions, those used last first: of one tenant, or of all."""
        return list((await self._ask("sessions", {"tenant": tenant}))[0])

    async def show(self, name: str) -> dict[str, Any]:
        """Tell what a session is made of, its summary, and the tier of each chunk; StoreError "miss" for none."""
        return dict((await self._ask("show", {"name": name}))[0])

    async def names(self, tenant: str, given: Sequence[str]) -> list[str]:
        """Return the names under which the store knows sessions, by the ids that clients gave them."""
        return list((await self._ask("names", {"tenant": tenant, "given": list(given)}))[0])

    async def erase(self, name: str) -> int:
        """Erase a session from all tiers and look that it is gone; return how many chunks were deleted."""
        return int((await self._ask("erase", {"name": name, "tenant": None}))[0]["chunks"])

    async def erase_tenant(self, tenant: str) -> int:
        """Erase a tenant's secret and all that it sealed; return how many things were deleted."""
        return int((await self._ask("erase", {"name": None, "tenant": tenant}))[0]["chunks"])

    async def gc(self) -> dict[str, int]:
        """Delete what is too old and what belongs to no session; return how many of each."""
        return dict((await self._ask("gc", {}))[0])

    async def export(self, name: str) -> bytes:
        """Return a session as a file, sealed: only a store with the same master key takes it in."""
        told, body = await self._ask("export", {"name": name})
        parts = wire.cut(body, told["sizes"])
        for chunk in range(told["chunks"]):
            asked = {"handle": told["handle"], "chunk": chunk, "sizes": told["sizes"]}
            parts.append((await self._ask("export_chunk", asked, parts[:2]))[1])
        await self.close(told["handle"])
        return records.joined(parts)

    async def import_(self, file: bytes) -> str:
        """Take in a file that `export` made, for the tenant that it names; return the session's name."""
        try:
            first, second, *chunks = records.split(file)
        except ValueError as exc:
            raise StoreError("refused", f"this is not the file of a session: {exc}") from exc
        told, _ = await self._ask_of("import", {}, [first, second])
        if len(chunks) != told["chunks"]:
            raise StoreError("refused", f"the file holds {len(chunks)} of {told['chunks']} chunks")
        for number, chunk in enumerate(chunks):
            asked = {"handle": told["handle"], "chunk": number}
            await self._ask_of("import_chunk", asked, [first, second, chunk])
        ended, _ = await self._ask_of("import_end", {"handle": told["handle"]}, [first, second])
        await self.close(told["handle"])
        return str(ended["name"])

    async def _ask_of(self, verb: str, asked: dict[str, Any], body: Sequence[Octets]) -> Answer:
        return await self._ask(verb, {**asked, "sizes": [len(each) for each in body]}, body)

    async def _ask(self, verb: str, asked: dict[str, Any], body: Sequence[Octets] = ()) -> Answer:
        self._last_id += 1
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            pieces = wire.encode({**asked, "id": self._last_id, "verb": verb}, body)
        except wire.FrameError as exc:
            raise StoreError("refused", str(exc)) from exc
        self._waiting[number := self._last_id] = answer
        try:
            await self._stream.send(pieces)
            return await answer
        except ConnectionError as exc:
            raise _lost() from exc
        finally:
            del self._waiting[number]

    # What the stream calls

    def opened(self, stream: Stream) -> None:
        """See `Side`."""

    def arrived(self, message: dict[str, Any], body: memoryview[int]) -> None:
        """See `Side`; what nobody waits for any more is dropped."""
        answer = self._waiting.get(message["id"])
        if answer is None or answer.done():
            return
        if (kind := message.get("error")) is None:
            answer.set_result((message.get("told"), body))
        else:
            answer.set_exception(StoreError(kind if kind in get_args(Kind) else "broken", str(message.get("message"))))

    def ended(self, why: wire.FrameError | None) -> None:
        """See `Side`; what is under way fails."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_lost(why))


def _lost(why: wire.FrameError | None = None) -> StoreError:
    return StoreError("unreachable", f"the connection to the session store was lost{f': {why}' if why else ''}")
