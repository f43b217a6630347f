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
from typing import Literal, TypeAlias, TypeVar

from sessioncache.breaker import Breaker
from sessioncache.problems import TierError
from sessioncache.several import each_of
from sessioncache.tiers import ColdTier, MemoryTier, Tier

Result = TypeVar("Result")
Place: TypeAlias = Literal["memory", "redis", "cold"]
MOST_AT_ONCE = 16
MOST_KNOWN = 1 << 18
DISTRUSTED_S = 60.0  # a cold copy that was not sound is as good as none for so long, and may be written anew


@dataclass(slots=True)
class Shelf:
    """The tiers of one store. `now` never jumps. `redis` is None where there is no warm tier."""

    memory: MemoryTier
    redis: Tier | None
    cold: ColdTier
    now: Callable[[], float]
    counts: Counter[str] = field(default_factory=Counter)
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
            elif place == "cold":
                self._in_cold.pop(key, None)

    async def put_back(self, key: str, stored: bytes) -> None:
        """Have a chunk in memory, if it fits."""
        await self._try("memory", lambda: self.memory.put(key, stored))

    async def save(self, key: str, stored: bytes) -> None:
        """Have a chunk in memory and in the first durable tier that takes it; TierError when none does."""
        await self.put_back(key, stored)
        for place in self.durable:
            if await self._put(place, key, stored):
                return
        raise TierError("no tier that outlives this process takes a chunk now; it is kept in memory")

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

    async def spoiled(self, place: Place, key: str) -> None:
        """Count a copy that is not sound. It is deleted, but for the cold one, which may be fine behind a bad wire."""
        self.counts[f"corrupt.{place}"] += 1
        self._in_cold.pop(key, None)
        if place == "cold":
            self._spoiled[key] = self.now() + DISTRUSTED_S
            return
        tier = self.places[place]
        await self._try(place, lambda: tier.delete(key))

    async def erase(self, key: str) -> None:
        """Delete a chunk from every tier and look that it is gone; TierError when that cannot be said."""
        self._in_cold.pop(key, None)

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

    def is_resting(self, place: Place) -> bool:
        """Whether a tier fails and is left alone."""
        return not self._breakers.get(place, Breaker()).allows(self.now())

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
