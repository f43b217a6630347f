"""The warm tier in Redis: each key is one hash of parts with a time to live, so it is there whole or not at all.

A value is cut into parts of 4 MiB, as Redis serves one command after the other and a large one would hold up all. Data
and size stand in one key, so eviction takes both (a peer loses one of two); every key has a time to live, so that a
server with `maxmemory-policy volatile-lru` may evict it.

Refuses to know what is stored. redis-py's errors end here, as TierError.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sessioncache.problems import TierError
from sessioncache.tiers import Entry

PART_BYTES = 4 << 20
_SCAN_COUNT = 500
_ABOUT = "about"
Result = TypeVar("Result")
_Value: TypeAlias = "bytes | bytearray | memoryview[int] | str | float"


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Where the server is and how patient we are. `most_connections` bounds the calls that are under way at once."""

    url: str
    prefix: str = "tidegate:kv:"
    ttl_s: float = 3600.0
    connect_timeout_s: float = 1.0
    timeout_s: float = 5.0
    most_connections: int = 16


@dataclass(frozen=True, slots=True)
class RedisTier:
    """See `Tier`. Lives as long as the server; a server that is gone is a TierError within the timeouts."""

    settings: RedisSettings
    clock: Callable[[], float]
    client: Redis

    async def put(self, key: str, stored: bytes) -> None:
        """See `Tier`."""
        name = self._name(key)
        fields: dict[_Value, _Value] = {
            str(i): stored[at : at + PART_BYTES] for i, at in enumerate(range(0, len(stored), PART_BYTES))
        }
        fields[_ABOUT] = f"{len(stored)} {self.clock()}"
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.delete(name)
            pipe.hset(name, mapping=fields)
            pipe.pexpire(name, int(self.settings.ttl_s * 1000))
            await self._run(pipe.execute)

    async def get(self, key: str, first: int = 0, end: int | None = None) -> bytes | None:
        """See `Tier`; only the parts that overlap the range travel."""
        name = self._name(key)
        part = first // PART_BYTES
        about, *parts = await self._fields(name, [_ABOUT, str(part)])
        if about is None:
            return None
        size = _size_and_time(about)[0]
        last = size if end is None else min(end, size)
        if first >= last:
            return b""
        if more := [str(number) for number in range(part + 1, -(-last // PART_BYTES))]:
            parts += await self._fields(name, more)
        if any(each is None for each in parts):
            return None  # expired or replaced between the two commands
        joined = b"".join(each for each in parts if each is not None) if more else parts[0]
        return (joined or b"")[first - part * PART_BYTES : last - part * PART_BYTES]

    async def size(self, key: str) -> int | None:
        """See `Tier`."""
        return (await self.sizes([key]))[0]

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """See `Tier`; one pipeline."""
        found = await self._abouts([self._name(key) for key in keys])
        return [None if about is None else _size_and_time(about)[0] for about in found]

    async def delete(self, key: str) -> None:
        """See `Tier`."""
        await self._run(lambda: self.client.unlink(self._name(key)))

    async def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """See `Tier`; what comes and goes meanwhile may be missed."""
        pattern, cursor = _literal(self._name(prefix)) + "*", 0
        while True:
            page = partial(self.client.scan, cursor, match=pattern, count=_SCAN_COUNT)
            cursor, names = cast("tuple[int, list[bytes]]", await self._run(page))
            for name, about in zip(names, await self._abouts(names), strict=True):
                if about is not None:
                    yield Entry(name.decode()[len(self.settings.prefix) :], *_size_and_time(about))
            if not cursor:
                return

    async def _abouts(self, names: Sequence[bytes | str]) -> list[bytes | None]:
        async with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(name, _ABOUT)
            return await self._run(pipe.execute) if names else []

    async def _fields(self, name: str, fields: list[str]) -> list[bytes | None]:
        return await self._run(lambda: cast("Awaitable[list[bytes | None]]", self.client.hmget(name, fields)))

    def _name(self, key: str) -> str:
        return self.settings.prefix + key

    async def _run(self, act: Callable[[], Awaitable[Result]]) -> Result:
        try:
            return await act()
        except (RedisError, OSError) as exc:
            raise TierError(f"Redis: {exc or type(exc).__name__}") from exc


@asynccontextmanager
async def open_redis(settings: RedisSettings, clock: Callable[[], float]) -> AsyncIterator[RedisTier]:
    """Give a tier on one pool of connections; connects when it is first used, and again after a loss."""
    pool = BlockingConnectionPool.from_url(
        settings.url,
        max_connections=settings.most_connections,
        timeout=settings.timeout_s,
        socket_timeout=settings.timeout_s,
        socket_connect_timeout=settings.connect_timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    async with Redis(connection_pool=pool, single_connection_client=False) as client:
        try:
            yield RedisTier(settings, clock, client)
        finally:
            await pool.disconnect()


def _size_and_time(about: bytes) -> tuple[int, float]:
    try:
        size, written_s = about.split()
        return int(size), float(written_s)
    except ValueError as exc:
        raise TierError("Redis: a key under our prefix was not written by us") from exc


def _literal(text: str) -> str:
    """Escape what a SCAN pattern would read as more than itself."""
    return "".join(f"\\{char}" if char in r"*?[]^\-" else char for char in text)
