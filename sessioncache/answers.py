"""What the store answers to each verb of its wire.

Refuses to know sockets, tiers and keys.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sessioncache import wire
from sessioncache.client import Prefix, StoreError
from sessioncache.connection import Answer, Handles
from sessioncache.moves import Moves
from sessioncache.prefixes import Handle, Prefixes
from sessioncache.sessions import Sessions
from sessioncache.shelf import Shelf
from sessioncache.transfer import Transfer

MOST_SUMMARY_BYTES = 256 << 10


@dataclass(slots=True)
class Answers:
    """All that a client may ask. `connections` are those whose handles end with a tenant's secret."""

    prefixes: Prefixes
    sessions: Sessions
    moves: Moves
    transfer: Transfer
    connections: set[Handles] = field(default_factory=set)

    async def answer(self, handles: Handles, message: dict[str, Any], body: memoryview[int]) -> Answer:
        """Answer one message; StoreError for a verb that is none."""
        verbs: dict[str, Callable[[Handles, dict[str, Any], memoryview[int]], Awaitable[Answer]]] = {
            "lookup": self._lookup, "fetch": self._fetch, "missing": self._missing, "save": self._save,
            "note": self._note, "close": self._close, "stats": self._stats, "sessions": self._list,
            "show": self._show, "names": self._names, "erase": self._erase, "gc": self._gc, "export": self._export,
            "export_chunk": self._export_chunk, "import": self._import, "import_chunk": self._import_chunk,
            "import_end": self._import_end,
        }  # fmt: skip
        if (verb := verbs.get(message["verb"])) is None:
            raise StoreError("refused", f"{message['verb']!r} is not a verb of this store")
        return await verb(handles, message, body)

    async def _lookup(self, handles: Handles, message: dict[str, Any], body: memoryview[int]) -> Answer:
        tenant, model, codec = message["tenant"], message["model"], message["codec"]
        if not all(isinstance(each, str) for each in (tenant, model, codec)) or type(message["common"]) is not int:
            raise StoreError("refused", "tenant, model and codec must be text, common a number")
        handle = await self.prefixes.open(Prefix(tenant, model, codec, wire.tokens_of(body), message["common"]))
        found = await self.prefixes.leading(handle)
        self.prefixes.shelf.counts["lookups"] += 1
        number = handles.add(handle)
        return {"handle": number, "tiers": [each[0] for each in found], "bytes": [each[1] for each in found]}, ()

    async def _fetch(self, handles: Handles, message: dict[str, Any], _: memoryview[int]) -> Answer:
        handle, first_layer = handles.get(message["handle"]), message["first_layer"]
        if type(first_layer) is not int or first_layer < 0:
            raise StoreError("refused", f"first_layer must be a number of a layer, not {first_layer!r}")
        layers = await self.prefixes.fetch(handle, _chunk(handle, message), first_layer)
        return {"sizes": [len(each) for each in layers]}, layers

    async def _missing(self, handles: Handles, message: dict[str, Any], _: memoryview[int]) -> Answer:
        handle = handles.get(message["handle"])
        nowhere = await self.prefixes.missing(handle)
        return {"chunks": [each for each in nowhere if self.sessions.erasing.may_save(handle.links[each].key)]}, ()

    async def _save(self, handles: Handles, message: dict[str, Any], body: memoryview[int]) -> Answer:
        handle = handles.get(message["handle"])
        number = _chunk(handle, message)
        if not self.sessions.erasing.may_save(handle.links[number].key):
            raise StoreError("refused", "the chunk belonged to a session that was erased just now")
        await self.prefixes.save(handle, number, wire.cut(body, message["sizes"]))
        return None, ()

    async def _note(self, handles: Handles, message: dict[str, Any], _: memoryview[int]) -> Answer:
        session, summary = message["session"], message["summary"]
        if not isinstance(session, str) or not isinstance(summary, dict):
            raise StoreError("refused", "session must be text and summary an object")
        if len(repr(summary)) > MOST_SUMMARY_BYTES:
            raise StoreError("refused", f"a summary of over {MOST_SUMMARY_BYTES} bytes is more than a session keeps")
        return {"name": await self.sessions.note(handles.get(message["handle"]), session, summary)}, ()

    async def _close(self, handles: Handles, message: dict[str, Any], _: memoryview[int]) -> Answer:
        handles.close(message["handle"])
        return None, ()

    async def _list(self, _: Handles, message: dict[str, Any], __: memoryview[int]) -> Answer:
        return await self.sessions.listed(message["tenant"]), ()

    async def _show(self, _: Handles, message: dict[str, Any], __: memoryview[int]) -> Answer:
        return await self.sessions.show(message["name"]), ()

    async def _names(self, _: Handles, message: dict[str, Any], __: memoryview[int]) -> Answer:
        return await self.sessions.names(message["tenant"], message["given"]), ()

    async def _erase(self, _: Handles, message: dict[str, Any], __: memoryview[int]) -> Answer:
        if (tenant := message["tenant"]) is None:
            return {"chunks": await self.sessions.erase(message["name"])}, ()
        for handles in self.connections:
            handles.close_all_of(tenant)
        return {"chunks": await self.sessions.erase_tenant(tenant)}, ()

    async def _gc(self, _: Handles, __: dict[str, Any], ___: memoryview[int]) -> Answer:
        return await self.moves.collect(), ()

    async def _export(self, handles: Handles, message: dict[str, Any], _: memoryview[int]) -> Answer:
        handle, records = await self.transfer.begin(message["name"])
        sizes = [len(each) for each in records]
        return {"handle": handles.add(handle), "chunks": len(handle.links), "sizes": sizes}, records

    async def _export_chunk(self, handles: Handles, message: dict[str, Any], body: memoryview[int]) -> Answer:
        handle = handles.get(message["handle"])
        number, records = _chunk(handle, message), wire.cut(body, message["sizes"])
        return None, [await self.transfer.chunk(handle, number, records)]

    async def _import(self, handles: Handles, message: dict[str, Any], body: memoryview[int]) -> Answer:
        handle = await self.transfer.take_in(wire.cut(body, message["sizes"]))
        return {"handle": handles.add(handle), "chunks": len(handle.links)}, ()

    async def _import_chunk(self, handles: Handles, message: dict[str, Any], body: memoryview[int]) -> Answer:
        handle = handles.get(message["handle"])
        await self.transfer.take_chunk(handle, _chunk(handle, message), wire.cut(body, message["sizes"]))
        return None, ()

    async def _import_end(self, handles: Handles, message: dict[str, Any], body: memoryview[int]) -> Answer:
        handle = handles.get(message["handle"])
        return {"name": await self.transfer.end(handle, wire.cut(body, message["sizes"]))}, ()

    async def _stats(self, _: Handles, __: dict[str, Any], ___: memoryview[int]) -> Answer:
        shelf, sessions = self.prefixes.shelf, self.sessions
        return {
            "tiers": _tiers(shelf),
            "counts": dict(shelf.counts),
            "sessions_warm": len(sessions.warm),
            "notes_waiting": len(sessions.waiting),
            "erasures_waiting": len(sessions.erasing.unfinished),
            "demoted": self.moves.demoted,
        }, ()


def _tiers(shelf: Shelf) -> dict[str, Any]:
    """Tell of each tier what it holds; of those that last, as they were listed last and changed by us since."""
    memory = shelf.memory
    told: dict[str, Any] = {"memory": {"chunks": memory.count, "bytes": memory.held_bytes}}
    told["memory"] |= {"most_bytes": memory.most_bytes, "dropped": memory.dropped}
    for place in shelf.durable:
        held = shelf.held.get(place)
        told[place] = {"chunks": held and held.chunks, "bytes": held and held.bytes}
        told[place]["failing"] = shelf.is_failing(place)
    return told


def _chunk(handle: Handle, message: dict[str, Any]) -> int:
    number: Any = message["chunk"]
    if type(number) is not int or not 0 <= number < len(handle.links):
        raise StoreError("refused", f"{number!r} is no chunk of a prefix of {len(handle.links)} chunks")
    return number
