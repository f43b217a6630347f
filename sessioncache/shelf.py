"""Which tier a chunk is in: memory, Redis, cold, in this order; a tier that fails is skipped for a while and counted.

A chunk is durable once Redis or the cold tier has it. What is read from a slower tier is put back into memory; memory
drops what was used longest ago, which is why only durable chunks may be dropped without a word (`dropped` counts all).

Refuses to know what the bytes are and whose.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from typing import Literal, TypeAlias, TypeVar

from sessioncache.breaker import FAILURES, Breaker
from sessioncache.problems import TierError
from sessioncache.several import each_of
from sessioncache.tiers import ColdTier, MemoryTier, Tier

Result = TypeVar("Result")
Place: TypeAlias = Literal["memory", "redis", "cold"]
MOST_AT_ONCE = 16
MOST_KNOWN = 1 << 18
DISTRUSTED_S = 60.0  # a cold copy that was not sound is as good as none for so long, and may be written anew


@dataclass(frozen=True, slots=True)
class Held:
    """What a tier holds: as it was listed last, and what we have put there since."""

    chunks: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Shelf:
    """The tiers of one store. `now` never jumps. `redis` is None where there is no warm tier."""

    memory: MemoryTier
    redis: Tier | None
    cold: ColdTier
    now: Callable[[], float]
    counts: Counter[str] = field(default_factory=Counter)
    held: dict[Place, Held] = field(default_factory=dict)
    _alone: set[str] = field(default_factory=set)  # chunks that memory alone has, as far as we know
    _mark: str = field(default_factory=lambda: f"here/{token_hex(8)}")
    _is_marked: bool = False
    _breakers: dict[Place, Breaker] = field(default_factory=dict)
    _in_cold: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _spoiled: dict[str, float] = field(default_factory=dict)
    _asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_AT_ONCE))

    @property
    def places(self) -> dict[Place, Tier]:
        """The tiers that there are, fastest first."""
        warm: dict[Place, Tier] = {} if self.redis is None else {"redis": self.redis}
        return {"memory": self.memory, **warm, "cold": self.cold}

    @property
    def durable(self) -> dict[Place, Tier]:
        """The tiers that outlive this process, fastest first."""
        return {place: tier for place, tier in self.places.items() if place != "memory"}

    async def find(self, keys: Sequence[str]) -> list[tuple[Place, int] | None]:
        """Say where each chunk is, and its size; None when no tier that answers has it."""
        return await self._find(list(self.places), keys)

    async def is_durable(self, key: str) -> bool:
        """Whether a tier that outlives this process has a chunk."""
        return await self._find(list(self.durable), [key]) != [None]

    async def copies(self, key: str) -> AsyncIterator[tuple[Place, bytes]]:
        """Give a chunk's bytes from each tier that has it, fastest first: the caller takes the first sound one."""
        for place, tier in self.places.items():
            stored = await self._try(place, partial(tier.get, key))
            if stored is not None:
                yield place, stored
                continue
            self.counts[f"misses.{place}"] += 1
            if place == "cold":
                self.forget(key)

    async def put_back(self, key: str, stored: bytes) -> None:
        """Have a chunk in memory, if it fits."""
        for oldest in self.memory.pushed_out_by(len(stored)):
            if oldest in self._alone:
                await self.to_cold(oldest)
        await self._try("memory", lambda: self.memory.put(key, stored))

    async def save(self, key: str, stored: bytes) -> None:
        """Have a chunk in memory and in the first durable tier that takes it; TierError when none does."""
        await self.put_back(key, stored)
        for place in self.durable:
            if await self._put(place, key, stored):
                return
        self._alone.add(key)
        raise TierError("no tier that outlives this process takes a chunk now; it is kept in memory")

    async def rescue(self) -> None:
        """Write to the cold tier what is in memory and in no tier that lasts: Redis may have lost it."""
        keys = [entry.key async for entry in self.memory.entries("chunks/")]
        found = await self._find(list(self.durable), keys)
        self._alone = {key for key, place in zip(keys, found, strict=True) if place is None}
        await each_of(self.to_cold, list(self._alone))

    async def has_redis_forgotten(self) -> bool:
        """Whether Redis has lost what it held since this was last asked: it started empty, or was emptied."""
        if (redis := self.redis) is None:
            return False
        sizes = await self._try("redis", lambda: redis.sizes([self._mark]))
        if sizes is None or sizes[0] is not None:
            return False
        is_first, self._is_marked = not self._is_marked, await self._put("redis", self._mark, b"here")
        return not is_first

    async def survey(self) -> None:
        """List what the tiers hold, for the figures and so that finding what is in the cold tier asks nobody."""
        for place, tier in self.durable.items():
            held = Held()
            async for entry in tier.entries("chunks/"):
                held = Held(held.chunks + 1, held.bytes + entry.bytes)
                if place == "cold":
                    self._is_in_cold(entry.key, entry.bytes)
            self.held[place] = held

    async def to_cold(self, key: str) -> bool:
        """Have a chunk in the cold tier; False when it could not be written there, or no tier has it."""
        if await self._find(["cold"], [key]) != [None]:
            return True
        async for place, stored in self.copies(key):
            if place != "cold":
                return await self._put("cold", key, stored)
        return False

    async def leave_warm(self, key: str) -> None:
        """Free a chunk from memory and Redis."""
        await self.memory.delete(key)
        if (redis := self.redis) is not None:
            await self._try("redis", lambda: redis.delete(key))
            held = self.held.get("redis", Held())
            self.held["redis"] = Held(max(0, held.chunks - 1), max(0, held.bytes - self._in_cold.get(key, 0)))

    async def spoiled(self, place: Place, key: str) -> None:
        """Count a copy that is not sound. It is deleted, but for the cold one, which may be fine behind a bad wire."""
        self.counts[f"corrupt.{place}"] += 1
        self.forget(key)
        if place == "cold":
            self._spoiled[key] = self.now() + DISTRUSTED_S
            return
        tier = self.places[place]
        await self._try(place, lambda: tier.delete(key))

    async def erase(self, key: str) -> None:
        """Delete a chunk from every tier and look that it is gone; TierError when that cannot be said."""
        self.forget(key)

        async def gone_from(tier: Tier) -> None:
            await tier.delete(key)
            if await tier.size(key) is not None:
                raise TierError(f"{key} is still there after it was deleted")

        await each_of(gone_from, self.places.values())

    def forget(self, key: str) -> None:
        """Believe no longer that the cold tier has a chunk."""
        self._in_cold.pop(key, None)

    def _is_in_cold(self, key: str, size: int) -> None:
        """Remember that the cold tier has a chunk: chunks never change, so this spares a call."""
        self._in_cold[key] = size
        if len(self._in_cold) > MOST_KNOWN:
            self._in_cold.popitem(last=False)

    def is_failing(self, place: Place) -> bool:
        """Whether a tier fails and is mostly left alone."""
        return self._breakers.get(place, Breaker()).failures >= FAILURES

    async def _find(self, places: Sequence[Place], keys: Sequence[str]) -> list[tuple[Place, int] | None]:
        """Ask each tier for all that no faster one has."""
        found: dict[str, tuple[Place, int]] = {}
        for place in places:
            sizes = await self._sizes(place, [key for key in keys if key not in found])
            found |= {key: (place, size) for key, size in sizes.items()}
        return [found.get(key) for key in keys]

    async def _sizes(self, place: Place, keys: list[str]) -> dict[str, int]:
        """Return the sizes of those chunks that a tier has."""
        if place != "cold":
            return await self._asked_sizes(place, keys)
        now_s = self.now()
        keys = [key for key in keys if self._spoiled.get(key, 0.0) <= now_s]
        found = {key: size for key in keys if (size := self._in_cold.get(key)) is not None}
        found |= await self._asked_sizes(place, [key for key in keys if key not in found])
        for key, size in found.items():
            self._is_in_cold(key, size)
        return found

    async def _asked_sizes(self, place: Place, keys: list[str]) -> dict[str, int]:
        tier = self.places[place]
        sizes = await self._try(place, lambda: tier.sizes(keys)) if keys else []
        return {key: size for key, size in zip(keys, sizes or (), strict=False) if size is not None}

    async def _put(self, place: Place, key: str, stored: bytes) -> bool:
        tier = self.places[place]

        async def put() -> bool:
            await tier.put(key, stored)
            return True

        was_put = await self._try(place, put) or False
        if was_put and key != self._mark:
            self._alone.discard(key)
            held = self.held.get(place, Held())
            self.held[place] = Held(held.chunks + 1, held.bytes + len(stored))
        if was_put and place == "cold":
            self._spoiled.pop(key, None)
            self._is_in_cold(key, len(stored))
        return was_put

    async def _try(self, place: Place, act: Callable[[], Awaitable[Result]]) -> Result | None:
        """Ask a tier, unless it rests; None when it fails."""
        breaker = self._breakers.get(place, Breaker())
        if place == "memory":
            return await self._counted(place, act)
        if not breaker.allows(self.now()):
            self.counts[f"skipped.{place}"] += 1
            return None
        if breaker.rests_until_s:
            self._breakers[place] = breaker.failed(self.now())  # one asks, the others wait for what it hears
        async with self._asked:
            return await self._counted(place, act)

    async def _counted(self, place: Place, act: Callable[[], Awaitable[Result]]) -> Result | None:
        try:
            done = await act()
        except TierError:
            self.counts[f"failed.{place}"] += 1
            self._breakers[place] = self._breakers.get(place, Breaker()).failed(self.now())
            return None
        self._breakers[place] = self._breakers.get(place, Breaker()).worked()
        return done
