"""The store process: takes calls of workers and gateways over a unix socket, moves sessions between tiers meanwhile.

Started as `python -m sessioncache.store --fd N` with its settings as one JSON line on standard input. It ends when that
input ends, or on SIGTERM, and first writes to the cold tier what would be lost, for `DRAIN_S` at most.

Refuses to know models, codecs and HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import uvloop

from sessioncache.answers import Answers
from sessioncache.connection import Connection
from sessioncache.erasing import Erasing
from sessioncache.ledger import Ledger
from sessioncache.moves import Moves
from sessioncache.prefixes import Prefixes
from sessioncache.problems import ChunkError, TierError, VaultError
from sessioncache.redis import RedisSettings, open_redis
from sessioncache.s3 import open_s3
from sessioncache.sessions import Sessions
from sessioncache.settings import SettingsError, StoreSettings, cold_of, settings_of
from sessioncache.shelf import Place, Shelf
from sessioncache.stream import Stream
from sessioncache.tenants import Tenants, master_of
from sessioncache.tiers import ColdTier, FolderTier, MemoryTier, Tier
from sessioncache.transfer import Transfer

EX_CONFIG = 78
MOST_CONNECTIONS = 64
SEALING_THREADS = 2
LOOK_EVERY_S, DRAIN_S = 5.0, 20.0
_DO: dict[Place, str] = {
    "redis": "answers go on, sessions go to the cold tier; see that the Redis of [sessions] redis runs",
    "cold": "answers go on, idle sessions stay in memory and Redis; see that [sessions] store can be written",
}


def log(event: str, **fields: object) -> None:
    """Write one JSON line to standard error, where whoever started us reads it."""
    os.write(2, orjson.dumps({"event": event, **fields}) + b"\n")


class Store:
    """One store, from its tiers up."""

    def __init__(self, settings: StoreSettings, tenants: Tenants, shelf: Shelf, beside: ThreadPoolExecutor) -> None:
        self._settings, self._tenants, self._shelf = settings, tenants, shelf
        ledger = Ledger(shelf.cold, tenants)
        erasing = Erasing(shelf, ledger, time.time, time.monotonic)
        sessions = Sessions(shelf, ledger, erasing, time.time, time.monotonic)
        self._moves = Moves(sessions, settings)
        prefixes = Prefixes(shelf, tenants, beside)
        self._answers = Answers(prefixes, sessions, self._moves, Transfer(prefixes, sessions))
        self._ended = asyncio.Event()
        self._failing: set[Place] = set()
        self._errors: dict[str, str] = {}

    async def run(self, listener: socket.socket) -> None:
        """Serve until told to end, then write what would be lost."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ended.set)
        loop.add_reader(0, self._parent_spoke)
        server = await loop.create_unix_server(lambda: Stream(self._connection()), sock=listener)
        log("store.ready", store=self._settings.store.partition("?")[0], pid=os.getpid())
        moving = asyncio.create_task(self._move())
        await self._ended.wait()
        server.close()
        moving.cancel()
        await asyncio.wait([moving])
        await self._drain()

    def _connection(self) -> Connection:
        return Connection(self._answers.answer, log, self._admitted, self._left)

    def _admitted(self, connection: Connection, uid: int) -> bool:
        """Talk to processes of our own user alone, and to so many at once."""
        if uid != os.getuid() or len(self._answers.connections) >= MOST_CONNECTIONS:
            log("store.refused", uid=uid, connections=len(self._answers.connections))
            return False
        self._answers.connections.add(connection.handles)
        return True

    def _left(self, connection: Connection) -> None:
        self._answers.connections.discard(connection.handles)

    async def _move(self) -> None:
        """Move what is due, every few seconds; a tier that fails is asked again at the next look."""
        starting = {"load": self._moves.load, "rewrap": self._tenants.rewrap, "survey": self._shelf.survey}
        collected_s = time.monotonic()
        while True:
            for name, act in list(starting.items()):
                if await self._pass(name, act):
                    del starting[name]
            await asyncio.sleep(min(LOOK_EVERY_S, self._settings.cold_after_s / 4))
            self._tell_tiers()
            await self._pass("notes", self._moves.sessions.write_waiting)
            await self._pass("keep", self._moves.keep)
            await self._pass("erase", self._moves.sessions.erasing.go_on)
            await self._pass("demote", self._moves.demote)
            if time.monotonic() - collected_s >= self._settings.gc_every_s:
                collected_s = time.monotonic()
                await self._pass("gc", self._moves.collect)

    def _tell_tiers(self) -> None:
        """Say once that a tier fails, and once that it is back."""
        failing = {place for place in self._shelf.durable if self._shelf.is_failing(place)}
        for place in sorted(failing - self._failing):
            log("store.tier_failing", tier=place, do=_DO[place])
        for place in sorted(self._failing - failing):
            log("store.tier_back", tier=place)
        self._failing = failing

    async def _pass(self, name: str, act: Callable[[], Awaitable[object]]) -> bool:
        try:
            await act()
        except (TierError, ChunkError, VaultError) as exc:
            if self._errors.get(name) != str(exc):  # once: it is tried again every few seconds
                self._errors[name] = str(exc)
                log("store.pass_failed", passed=name, error=str(exc))
            return False
        self._errors.pop(name, None)
        return True

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._pass("drain", self._shelf.rescue)
                await self._pass("notes", self._moves.sessions.write_waiting)
        except TimeoutError:
            log("store.drain_cut_off", after_s=DRAIN_S)

    def _parent_spoke(self) -> None:
        if not os.read(0, 4096):
            self._ended.set()


@asynccontextmanager
async def opened(settings: StoreSettings) -> AsyncIterator[tuple[Tier | None, ColdTier]]:
    """Give the tiers that outlive the process."""
    place = cold_of(settings.store)
    async with _warm(settings) as redis:
        if isinstance(place, str):
            yield redis, FolderTier(Path(place))
            return
        async with open_s3(place) as cold:
            yield redis, cold


@asynccontextmanager
async def _warm(settings: StoreSettings) -> AsyncIterator[Tier | None]:
    if settings.redis_url is None:
        yield None
        return
    lasting_s = 2 * settings.cold_after_s + 3600.0  # a chunk must still be there when its session is demoted
    async with open_redis(RedisSettings(settings.redis_url, ttl_s=lasting_s), time.time) as tier:
        yield tier


async def serve(settings: StoreSettings, listener: socket.socket) -> None:
    """Run a store; VaultError when its master key is missing."""
    master = master_of(settings)
    with ThreadPoolExecutor(SEALING_THREADS, "sealing") as beside:
        async with opened(settings) as (redis, cold):
            shelf = Shelf(MemoryTier(settings.memory_bytes, time.time), redis, cold, time.monotonic)
            await Store(settings, Tenants(master, cold, time.monotonic), shelf, beside).run(listener)


def main() -> None:
    """Read the settings and serve; a setting that cannot be ends with EX_CONFIG and one line that says why."""
    parser = argparse.ArgumentParser(prog="sessioncache.store", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the listening unix socket, inherited")
    fd = parser.parse_args().fd
    try:
        uvloop.run(serve(settings_of(sys.stdin.buffer.readline()), socket.socket(fileno=fd)))
    except (SettingsError, VaultError) as exc:
        log("store.failed", error=str(exc))
        sys.exit(EX_CONFIG)


if __name__ == "__main__":
    main()
