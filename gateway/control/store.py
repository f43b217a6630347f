"""The session store's process, kept running beside the workers, and what it and they are told about sessions.

A store that is away costs restores, never an answer: nothing here ends the gateway.
Refuses to know what is stored.
"""

from __future__ import annotations

import asyncio
import os
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from gateway.config import Config, Sessions, WorkerSettings
from gateway.control import process
from gateway.control.pauses import Pauses
from sessioncache.client import StoreClient, StoreError

Events = Callable[[str, dict[str, object]], None]
END_PATIENCE_S = 25.0  # longer than a store takes at most to write what would be lost
STATS_TIMEOUT_S = 1.0


class StoreKeeper:
    """Keeps the store running on one socket, and one connection to it."""

    def __init__(self, path: Path, told: Mapping[str, object], settings: WorkerSettings, events: Events) -> None:
        self.path = path
        self._told, self._events, self._pauses = told, events, Pauses(settings)
        self._listener: socket.socket | None = None
        self._client: StoreClient | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.pid: int | None = None

    async def start(self) -> None:
        """Bind the socket and begin; does not wait until the store is ready. OSError when it cannot be bound."""
        self._listener = process.listen(self.path)
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End the store, which first writes what would be lost. Calling it twice is fine."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        if self._listener is not None:
            self._listener.close()
            self.path.unlink(missing_ok=True)

    async def client(self) -> StoreClient:
        """Return a connection that is up; StoreError when there is no store."""
        if self.pid is None:
            raise StoreError("unreachable", "the session store is starting again; try again")
        if self._client is not None and self._client.is_connected:
            return self._client
        if self._client is not None:
            await self._client.aclose()
        self._client = await StoreClient.connect(self.path)
        return self._client

    async def stats(self) -> dict[str, Any] | None:
        """Return what the store holds and has counted; None when it does not answer soon."""
        try:
            async with asyncio.timeout(STATS_TIMEOUT_S):
                return await (await self.client()).stats()
        except (StoreError, TimeoutError):
            return None

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            born_s = loop.time()
            reason = await self._live()
            wait_s = self._pauses.after(loop.time() - born_s)
            self._events("store.died", {"reason": reason})
            self._events("store.restarting", {"in_s": round(wait_s, 3), "deaths": self._pauses.deaths})
            await asyncio.sleep(wait_s)

    async def _live(self) -> str:
        """Run one store from start to end; return why it ended."""
        assert self._listener is not None, "start comes before"  # noqa: S101
        try:
            store = await process.spawn(self._listener, self._told, module="sessioncache.store")
        except OSError as exc:
            return f"it could not be started: {exc}"
        self.pid = store.pid
        hearing = asyncio.create_task(self._hear(store))
        try:
            await store.wait()
        finally:
            self.pid = None
            await process.stop(store, patience_s=END_PATIENCE_S)
            await hearing
        return process.why(store.returncode)

    async def _hear(self, store: Process) -> None:
        async for event, fields in process.said(store, name="store"):
            self._events(event, fields)


def keeps_sessions(config: Config) -> bool:
    """Whether there is anything to store: sessions are on, and a worker of ours computes KV."""
    releases = (release for model in config.models for release in model.releases)
    return config.sessions.enabled and any(release.is_computed_here for release in releases)


def state_dir(sessions: Sessions, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what must survive a restart."""
    if sessions.state_dir:
        return Path(sessions.state_dir)
    given = environment.get("XDG_STATE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state") / "tidegate"


def profiles_dir(sessions: Sessions, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of calibrated codecs."""
    return Path(sessions.profiles) if sessions.profiles else state_dir(sessions, environment) / "profiles"


def store_settings(sessions: Sessions, environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Say what the store is told on its standard input."""
    state = state_dir(sessions, environment)
    return {
        "store": _place(sessions, state),
        "state_dir": str(state),
        "memory_bytes": sessions.memory_bytes,
        "redis_url": sessions.redis or None,
        "cold_after_s": sessions.cold_after_s,
        "ttl_s": sessions.ttl_s,
        "key_file": sessions.encryption_key_file or None,
        "key_command": sessions.encryption_key_command or None,
    }


def _place(sessions: Sessions, state: Path) -> str:
    if sessions.store == "file:":
        return f"file:{state / 'sessions'}"
    asked = {"endpoint": sessions.endpoint, "region": sessions.region} if sessions.store.startswith("s3:") else {}
    given = urlencode({name: value for name, value in asked.items() if value})
    return f"{sessions.store}?{given}" if given else sessions.store


def worker_sessions(sessions: Sessions, store: Path, environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Say what a worker is told about sessions."""
    return {
        "store": str(store),
        "profiles": str(profiles_dir(sessions, environment)),
        "codec": sessions.codec,
        "min_agreement": sessions.min_agreement,
        "write_behind_s": sessions.write_behind_s,
        "active_s": sessions.active_s,
        "min_restore_tokens": sessions.min_restore_tokens,
        "recheck_every": sessions.recheck_every,
    }
