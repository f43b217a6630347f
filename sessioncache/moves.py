"""When sessions move: idle ones to the cold tier, old ones away, chunks of nobody swept. Rules are pure; acts follow.

How long ago something was is told by a clock that never jumps; the time of day counts only for what other processes
wrote, and a pass that finds it jumped does nothing.

Refuses to know sockets and what chunks hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sessioncache.erasing import SHARED
from sessioncache.problems import ChunkError, VaultError
from sessioncache.sessions import Sessions, Warm
from sessioncache.settings import StoreSettings
from sessioncache.tenants import place_of

GRACE_S = 86400.0  # longer than any chunk waits for the note that names it
PRESSED = 0.9
JUMP_S = 300.0
AT_ONCE = 4
Named: TypeAlias = tuple[str, str]


def due(warm: Mapping[Named, Warm], now_s: float, cold_after_s: float, *, is_pressed: bool) -> list[Named]:
    """Return the sessions whose place is the cold tier now, oldest first; pressed, an eighth of all goes early."""
    oldest = sorted(warm, key=lambda each: warm[each].used_s)
    idle = [each for each in oldest if now_s - warm[each].used_s >= cold_after_s]
    return max(idle, oldest[: -(-len(oldest) // 8)] if is_pressed else [], key=len)


def has_jumped(wall_s: float, steady_s: float) -> bool:
    """Whether the time of day went on by something else than the steady clock did."""
    return abs(wall_s - steady_s) > JUMP_S


@dataclass(slots=True)
class Moves:
    """Moves what `sessions` knows. One pass of a kind at a time."""

    sessions: Sessions
    settings: StoreSettings
    demoted: int = 0
    _last: tuple[float, float] | None = None

    async def load(self) -> None:
        """After a start, find the sessions that a store before us has left in Redis."""
        redis = self.sessions.shelf.redis
        held = {entry.key async for entry in redis.entries("chunks/")} if redis is not None else set()
        now, wall = self.sessions.now(), self.sessions.wall()
        for tenant in await self.sessions.ledger.tenants.names() if held else ():
            async for kept in self.sessions.ledger.all_of(tenant):
                if not held.isdisjoint(kept.chunks):
                    used_s = now - max(0.0, wall - kept.used_s)
                    self.sessions.warm.setdefault((tenant, kept.session), Warm(kept.chunks, used_s))

    async def demote(self) -> None:
        """Have due sessions in the cold tier alone; one that cannot be written there now stays as it is."""
        memory = self.sessions.shelf.memory
        is_pressed = memory.held_bytes > PRESSED * memory.most_bytes
        now_s, after_s = self.sessions.now(), self.settings.cold_after_s
        for named in due(self.sessions.warm, now_s, after_s, is_pressed=is_pressed):
            if (warm := self.sessions.warm.get(named)) is not None:
                await self._demote(named, warm)

    async def keep(self) -> None:
        """Write early to the cold tier what nothing else that lasts has, now that Redis fails or has lost it."""
        shelf = self.sessions.shelf
        has_forgotten = await shelf.has_redis_forgotten()
        if has_forgotten:
            shelf.counts["forgotten.redis"] += 1
        if has_forgotten or shelf.is_failing("redis"):
            await shelf.rescue()

    async def collect(self, grace_s: float = GRACE_S) -> dict[str, int]:
        """Delete sessions idle for longer than `ttl`, old tombstones, and chunks that no session has for `grace_s`."""
        counts = {"sessions": 0, "tombstones": 0, "chunks": 0, "skipped": 0}
        if self._is_clock_wrong():
            return {**counts, "skipped": 1}
        live: set[str] = set()
        known = await self.sessions.ledger.tenants.names()
        sound = [each for each in known if await self._collect_sessions(each, live, counts)]
        skipped = {place_of(each) for each in known} - {place_of(each) for each in sound}
        counts["skipped"] = len(skipped)
        if skipped:
            skipped.add(SHARED.split("/")[1])  # a tenant that cannot be read may hold chunks of the common prompts
        await self._sweep(live, skipped, grace_s, counts)
        await self.sessions.shelf.survey()
        return counts

    async def _demote(self, named: Named, warm: Warm) -> None:
        shelf = self.sessions.shelf
        for first in range(0, len(warm.chunks), AT_ONCE):
            keys = warm.chunks[first : first + AT_ONCE]
            moved = await asyncio.gather(*(shelf.to_cold(key) for key in keys))
            for key, is_moved in zip(keys, moved, strict=True):
                if not is_moved and (await shelf.find([key]))[0] is not None:
                    return  # the cold tier does not take it: try again later
        if self.sessions.warm.get(named) != warm:
            return  # used meanwhile
        del self.sessions.warm[named]
        gone = set(warm.chunks)
        for other in self.sessions.warm.values():
            gone.difference_update(other.chunks)
        for key in gone:
            await shelf.leave_warm(key)
        self.demoted += 1

    async def _collect_sessions(self, tenant: str, live: set[str], counts: dict[str, int]) -> bool:
        """Add a tenant's chunks to `live`; False when one of its manifests cannot be read, so nothing may be swept."""
        wall = self.sessions.wall()
        try:
            for kept in [each async for each in self.sessions.ledger.all_of(tenant, strictly=True)]:
                if kept.is_erased and kept.left:
                    self.sessions.erasing.unfinished.add((tenant, kept.session))
                elif kept.is_erased and wall - (kept.erased_s or 0.0) > self.settings.tombstone_s:
                    await self.sessions.ledger.forget(tenant, kept.session)
                    counts["tombstones"] += 1
                elif not kept.is_erased and wall - kept.used_s > self.settings.ttl_s:
                    await self.sessions.erase_of(tenant, kept.session)
                    await self.sessions.ledger.forget(tenant, kept.session)  # its client may come back
                    counts["sessions"] += 1
                else:
                    live.update(kept.chunks)
        except (ChunkError, VaultError):
            return False
        return True

    async def _sweep(self, live: set[str], skipped: set[str], grace_s: float, counts: dict[str, int]) -> None:
        shelf, wall = self.sessions.shelf, self.sessions.wall()
        for tier in shelf.durable.values():
            for entry in [each async for each in tier.entries("chunks/")]:
                of = entry.key.split("/")[1]
                if entry.key not in live and of not in skipped and wall - entry.written_s >= grace_s:
                    await tier.delete(entry.key)
                    shelf.forget(entry.key)
                    counts["chunks"] += 1

    def _is_clock_wrong(self) -> bool:
        now = self.sessions.wall(), self.sessions.now()
        last, self._last = self._last, now
        return last is not None and has_jumped(now[0] - last[0], now[1] - last[1])
