"""Sessions: what a client calls one, the chunks it is made of, who is listed, shown, and erased for good.

Refuses to know payloads, sockets and when things move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sessioncache.client import StoreError
from sessioncache.erasing import Erasing
from sessioncache.identity import CHUNK_TOKENS, session_name
from sessioncache.ledger import Ledger
from sessioncache.manifest import Manifest, moved_on
from sessioncache.prefixes import Handle
from sessioncache.problems import ChunkError, TierError, VaultError
from sessioncache.several import each_of
from sessioncache.shelf import Shelf

MOST_WAITING = 1024


@dataclass(frozen=True, slots=True)
class Warm:
    """A session that is not in the cold tier alone: its chunks, and when it was used (by a clock that never jumps)."""

    chunks: tuple[str, ...]
    used_s: float


@dataclass(frozen=True, slots=True)
class Note:
    """What is said of a session, by whom looked at `seen_s` and said it at `used_s` (both the time of day)."""

    handle: Handle
    name: str
    summary: dict[str, Any]
    seen_s: float
    used_s: float

    def on(self, now: Manifest | None) -> Manifest | None:
        """Return a session's manifest with this note; None for one that was erased."""
        prefix = self.handle.prefix
        now = now or Manifest(self.name, prefix.model, created_s=self.used_s)
        then = moved_on(now, self.handle.keys, len(prefix.tokens), seen_s=self.seen_s, used_s=self.used_s)
        is_late = then is not None and then.chunks != tuple(self.handle.keys)
        return then if then is None or is_late else replace(then, model=prefix.model, summary=self.summary)


@dataclass(slots=True)
class Sessions:
    """What is said of sessions. `wall` is the time of day, for what is kept; `now` never jumps, for how long ago.

    `warm` holds (tenant, session) -> its chunks and when it was last used, by `now`: what may have to move. `waiting`
    holds the notes that the cold tier does not take now; they are lost with this process, and nothing else is then:
    a prompt's chunks are found without a note, until they are swept.
    """

    shelf: Shelf
    ledger: Ledger
    erasing: Erasing
    wall: Callable[[], float]
    now: Callable[[], float]
    warm: dict[tuple[str, str], Warm] = field(default_factory=dict)
    waiting: dict[tuple[str, str], Note] = field(default_factory=dict)

    async def note(self, handle: Handle, given: str, summary: Mapping[str, Any]) -> str:
        """Say what a session is made of now; StoreError "refused" for an erased one, whose chunks go at once."""
        return await self.note_as(handle, session_name(handle.secrets.sessions, given), summary)

    async def note_as(self, handle: Handle, name: str, summary: Mapping[str, Any]) -> str:
        """Do as `note` does, for a session whose name is known."""
        wall = self.wall()
        note = Note(handle, name, dict(summary), wall - (self.now() - handle.seen_s), wall)
        tenant = handle.prefix.tenant
        try:
            await self._write(note)
        except TierError:
            if (tenant, name) not in self.waiting and len(self.waiting) >= MOST_WAITING:
                raise
            self.waiting[tenant, name] = note
            self.warm[tenant, name] = Warm(tuple(handle.keys), self.now())
        else:
            self.waiting.pop((tenant, name), None)
        return name

    async def write_waiting(self) -> None:
        """Write the notes that the cold tier did not take when they came."""
        for named, note in list(self.waiting.items()):
            with suppress(StoreError, ChunkError, VaultError):  # it was erased, or cannot be read any more
                await self._write(note)
            if self.waiting.get(named) is note:
                del self.waiting[named]

    async def _write(self, note: Note) -> None:
        tenant = note.handle.prefix.tenant
        kept = await self.ledger.change(tenant, note.name, note.on)
        if kept is None or kept.is_erased:
            await self.erasing.chunks(tenant, note.handle.keys)
            raise StoreError("refused", f"the session {note.name} was erased")
        self.warm[tenant, note.name] = Warm(kept.chunks, self.now())

    async def listed(self, tenant: str | None) -> list[dict[str, Any]]:
        """List sessions, those used last first."""
        tenants = [tenant] if tenant is not None else await self.ledger.tenants.names()
        found = [told(each, kept) for each in tenants async for kept in self.ledger.all_of(each) if not kept.is_gone]
        return sorted(found, key=lambda each: -each["used_s"])

    async def find(self, name: str) -> tuple[str, Manifest]:
        """Find a session by its name, whoever's it is; StoreError "miss" when there is none."""

        async def kept_by(tenant: str) -> Manifest | None:
            try:
                return await self.ledger.read(tenant, name)
            except ChunkError:
                return None

        tenants = await self.ledger.tenants.names()
        for tenant, kept in zip(tenants, await each_of(kept_by, tenants), strict=True):
            if kept is not None and not kept.is_gone:
                return tenant, kept
        raise StoreError("miss", f"there is no session {name}")

    async def show(self, name: str) -> dict[str, Any]:
        """Tell what a session is made of, with the tier of each chunk."""
        tenant, kept = await self.find(name)
        places = await self.shelf.find(kept.chunks)
        chunks = [{"tier": place[0], "bytes": place[1]} if place else {"tier": None, "bytes": 0} for place in places]
        return {**told(tenant, kept), "summary": kept.summary, "chunks": chunks}

    async def names(self, tenant: str, given: list[str]) -> list[str]:
        """Return what sessions are called here, by what their client calls them."""
        secrets = await self.ledger.tenants.secrets(tenant)
        return [session_name(secrets.sessions, each) for each in given]

    async def erase(self, name: str) -> int:
        """Erase a session from all tiers, leaving a tombstone; return how many chunks were deleted."""
        tenant, _ = await self.find(name)
        return await self.erase_of(tenant, name)

    async def erase_of(self, tenant: str, name: str) -> int:
        """Do as `erase` does, for a session whose tenant is known."""
        self.warm.pop((tenant, name), None)
        self.waiting.pop((tenant, name), None)
        return await self.erasing.session(tenant, name)

    async def erase_tenant(self, tenant: str) -> int:
        """Erase a tenant with all that it has; return how many things were deleted."""
        for held in (self.warm, self.waiting):
            for owned in [each for each in held if each[0] == tenant]:
                del held[owned]
        return await self.erasing.tenant(tenant)


def told(tenant: str, kept: Manifest) -> dict[str, Any]:
    """Return what the list says of a session."""
    said = {
        "tenant": tenant,
        "session": kept.session,
        "model": kept.model,
        "tokens": kept.tokens,
        "used_s": kept.used_s,
        "created_s": kept.created_s,
        "stored_tokens": len(kept.chunks) * CHUNK_TOKENS,
    }
    return {**said, "erasing_chunks": len(kept.left)} if kept.is_erased else said
