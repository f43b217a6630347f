"""The store's process beside the workers: started, started again when it dies, ended with the gateway."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gateway.config import Sessions, WorkerSettings
from gateway.control.store import StoreKeeper, store_settings
from sessioncache.client import StoreError

PATIENCE_S = 60
BACKOFF = WorkerSettings(restart_backoff_s=0.05, restart_backoff_max_s=0.1)


class Kept:
    """A keeper and what it told."""

    def __init__(self, socket: Path, told: dict[str, object]) -> None:
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.keeper = StoreKeeper(socket, told, BACKOFF, lambda event, _: self.events.put_nowait(event))

    async def event(self, name: str) -> None:
        """Wait for the next event of a name."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.events.get() != name:
                pass


@asynccontextmanager
async def kept(folder: Path, **changed: object) -> AsyncIterator[Kept]:
    """Keep a store whose tiers are in a folder; its socket's path must be short."""
    told = {**store_settings(Sessions(state_dir=str(folder))), **changed}
    with TemporaryDirectory(prefix="tg") as sockets:
        started = Kept(Path(sockets) / "store.sock", told)
        await started.keeper.start()
        try:
            yield started
        finally:
            await started.keeper.close()


async def test_the_store_answers_and_ends_with_its_keeper(tmp_path: Path) -> None:
    """A kept store can be asked; closing the keeper leaves neither a process nor a socket."""
    async with kept(tmp_path) as started:
        await started.event("store.ready")
        client, pid = await started.keeper.client(), started.keeper.pid
        assert await client.sessions() == []

    assert pid is not None
    assert not started.keeper.path.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_store_that_dies_is_started_again(tmp_path: Path) -> None:
    """After a kill the next store answers on the same socket, over a new connection."""
    async with kept(tmp_path) as started:
        await started.event("store.ready")
        first, pid = await started.keeper.client(), started.keeper.pid
        assert pid is not None
        assert await first.sessions() == []
        os.kill(pid, signal.SIGKILL)
        await started.event("store.died")
        await started.event("store.ready")

        assert await (await started.keeper.client()).sessions() == []
        assert not first.is_connected


async def test_a_store_that_cannot_start_is_told_and_refuses_to_be_asked(tmp_path: Path) -> None:
    """A wrong key ends the store, not the gateway: it is tried again later, and whoever asks hears why."""
    (tmp_path / "keys").write_text("no key")

    async with kept(tmp_path, key_file=str(tmp_path / "keys")) as started:
        await started.event("store.failed")
        await started.event("store.restarting")

        with pytest.raises(StoreError, match="starting again"):
            await started.keeper.client()
