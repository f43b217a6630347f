"""A worker with the real model that keeps its sessions in a real store, started and ended as tests want."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from backends.api import Call, Message, Sampling, SessionCounts, Usage
from backends.local import LocalBackend
from gateway.config import Batching
from gateway.control import process
from gateway.control.pool import worker_settings
from tests.pools import small_config
from tests.test_worker import connected

SESSIONS = {"min_restore_tokens": 256, "write_behind_s": 0.0, "recheck_every": 1}


@dataclass(frozen=True, slots=True)
class Answered:
    """What a call brought."""

    text: str
    usage: Usage


class Worker:
    """A running worker."""

    def __init__(self, spawned: Process, path: Path) -> None:
        self.process, self._path, self.backend = spawned, path, LocalBackend(path)

    async def ask(self, messages: Sequence[Message], call_id: str = "c", **settings: object) -> Answered:
        """Answer a greedy call."""
        call = Call(call_id, "m", tuple(messages), sampling=Sampling(temperature=0.0), max_tokens=8, ignore_eos=True)
        deltas = [delta async for delta in self.backend.stream(replace(call, **settings))]  # type: ignore[arg-type]
        usage = deltas[-1].usage
        assert usage is not None
        return Answered("".join(delta.text for delta in deltas), usage)

    async def counted(self, name: str, least: int = 1) -> SessionCounts:
        """Wait until something was counted so often."""
        async with connected(self._path) as wire:
            while True:
                _, stats = await wire.next("stats")
                counts = SessionCounts(**stats["sessions"])
                if getattr(counts, name) >= least and not (name == "saves" and counts.waiting_saves):
                    return counts

    async def killed(self) -> None:
        """End it by force."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def keeping(
    store: Path, profiles: Path, *, kv_memory_bytes: int = 64 << 20, **sessions: object
) -> AsyncIterator[Worker]:
    """Run a worker whose sessions are in a store."""
    config = replace(small_config(), batching=Batching(kv_memory_bytes=kv_memory_bytes))
    told = dict(worker_settings(config, config.models[0], config.models[0].releases[0]))
    told["sessions"] = {"store": str(store), "profiles": str(profiles), **SESSIONS, **sessions}
    with TemporaryDirectory(prefix="tg") as folder, process.listen(Path(folder) / "worker.sock") as listener:
        spawned = await process.spawn(listener, told)
        said = asyncio.create_task(_hear(spawned))
        worker = Worker(spawned, Path(folder) / "worker.sock")
        try:
            await worker.backend.connect()
            yield worker
        finally:
            await worker.backend.close()
            await process.stop(spawned)
            await said


async def _hear(spawned: Process) -> None:
    async for event, fields in process.said(spawned):
        print(event, fields)  # noqa: T201 - what a failed test shows


def story(lines: int, topic: str = "harbour") -> str:
    """Write a text that is long and no two lines of which are equal."""
    return "\n".join(
        f"Line {number} of the {topic} log: ship {number * 7919 % 997} came in." for number in range(lines)
    )
