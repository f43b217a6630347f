"""The workers of all local releases: each kept running, restarted with growing pauses when it dies, ended with us.

Refuses to know calls, models' insides and who listens to its events.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from secrets import SystemRandom

from backends.api import Backend, BackendError, Replica
from backends.echo import EchoBackend
from backends.local import LocalBackend
from gateway.config import Config, Model, Release, WorkerSettings
from gateway.control import process

Events = Callable[[str, dict[str, object]], None]
EXIT_PATIENCE_S = 1.0  # after its connection has ended: how it exits says more about why


def pause_s(deaths: int, settings: WorkerSettings, spread: float) -> float:
    """Pause after so many deaths in a row: doubling up to the limit, less up to half of it, so that workers part."""
    longest = min(settings.restart_backoff_s * 2.0 ** min(deaths - 1, 32), settings.restart_backoff_max_s)
    return longest * (1 - spread / 2)


class Keeper:
    """Keeps one worker running on one socket."""

    def __init__(
        self, replica_id: str, path: Path, told: Mapping[str, object], settings: WorkerSettings, events: Events
    ) -> None:
        self._path, self._told, self._settings = path, told, settings
        self._events, self._labels = events, {"replica": replica_id, "model": told["model"]}
        self._listener: socket.socket | None = None
        self._deaths = 0
        self._is_draining = False
        self.backend = LocalBackend(path, lambda what, fraction: self._tell("loading", what=what, fraction=fraction))

    def listen(self) -> None:
        """Bind the socket; OSError when that cannot be."""
        self._listener = process.listen(self._path)

    def close(self) -> None:
        """Remove the socket."""
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    def drain(self) -> None:
        """Let the worker answer what it has and end, and start no other."""
        self._is_draining = True
        self.backend.drain()

    async def keep(self) -> None:
        """Run one worker after the other, until it has drained."""
        loop = asyncio.get_running_loop()
        while not self._is_draining:
            born_s = loop.time()
            reason = await self._live()
            self._tell("stopped" if self._is_draining else "died", reason=reason)
            if not self._is_draining:
                has_lived = loop.time() - born_s > self._settings.restart_backoff_max_s
                self._deaths = 1 if has_lived else self._deaths + 1
                wait_s = pause_s(self._deaths, self._settings, SystemRandom().random())
                self._tell("restarting", in_s=round(wait_s, 3), deaths=self._deaths)
                await asyncio.sleep(wait_s)

    async def _live(self) -> str:
        """Run one worker from start to end; return why it ended."""
        assert self._listener is not None, "listen comes before keep"  # noqa: S101
        try:
            worker = await process.spawn(self._listener, self._told)
        except OSError as exc:
            return f"it could not be started: {exc}"
        self._tell("started", pid=worker.pid)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(worker))
            serving = tasks.create_task(self._serve(worker))
            exited = tasks.create_task(worker.wait())
            try:
                await asyncio.wait({serving, exited}, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait({exited}, timeout=EXIT_PATIENCE_S)
            finally:
                reason = serving.result() if worker.returncode is None and serving.done() else ""
                serving.cancel()
                await self.backend.close()
                await process.stop(worker)
        return reason or process.why(worker.returncode)

    async def _serve(self, worker: Process) -> str:
        """Connect and stay connected; return why that ended."""
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self.backend.connect()
        except TimeoutError:
            return f"it was not ready after {self._settings.start_timeout_s:g} s; [worker] start_timeout allows more"
        except BackendError as exc:
            return exc.message
        self._tell("ready", pid=worker.pid)
        return await self.backend.lost()

    async def _hear(self, worker: Process) -> None:
        async for event, fields in process.said(worker):
            self._events(event, {**fields, **self._labels})

    def _tell(self, event: str, **fields: object) -> None:
        self._events(f"worker.{event}", {**fields, **self._labels})


class Pool:
    """All replicas of this gateway that need no network: workers, and echoes, which need no process."""

    def __init__(self, config: Config, run_dir: Path, events: Events) -> None:
        self._keepers: list[Keeper] = []
        self._keeping: asyncio.Task[None] | None = None
        replicas: list[Replica] = []
        for replica_id, model, release in slots(config):
            backend: Backend = EchoBackend(model.name)
            if release.source != "echo":
                path = run_dir / "workers" / f"{len(self._keepers)}.sock"
                told = worker_settings(config, model, release)
                keeper = Keeper(replica_id, path, told, config.worker, events)
                self._keepers.append(keeper)
                backend = keeper.backend
            replicas.append(Replica(replica_id, model.name, release.name, backend))
        self.replicas: Sequence[Replica] = replicas

    async def start(self) -> None:
        """Bind all sockets and spawn all workers; does not wait until they are ready. OSError when a socket fails."""
        try:
            for keeper in self._keepers:
                keeper.listen()
        except OSError:
            self._close_sockets()
            raise
        self._keeping = asyncio.create_task(self._keep())

    async def drain(self, timeout_s: float) -> None:
        """Let every worker answer what it has and end; return when all have, or the time is over."""
        for keeper in self._keepers:
            keeper.drain()
        if self._keeping is not None:
            await asyncio.wait({self._keeping}, timeout=timeout_s)

    async def close(self) -> None:
        """End all workers, by force if need be, and remove their sockets. Calling it twice is fine."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        self._close_sockets()

    async def _keep(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for keeper in self._keepers:
                tasks.create_task(keeper.keep())

    def _close_sockets(self) -> None:
        for keeper in self._keepers:
            keeper.close()


def slots(config: Config) -> Iterator[tuple[str, Model, Release]]:
    """Yield every replica that the configuration asks for, under a name that stays over restarts."""
    for model in config.models:
        for release in model.releases:
            for number in range(release.replicas):
                yield f"{model.name}/{release.name}/{number}", model, release


def worker_settings(config: Config, model: Model, release: Release) -> dict[str, object]:
    """Say what a worker is told on its standard input."""
    batching = config.batching
    return {
        "model": model.name,
        "source": release.source,
        "context_tokens": release.context_tokens,
        "rope_scaling": release.rope_scaling.type,
        "rope_factor": release.rope_scaling.factor,
        "runner": config.worker.runner,
        "max_batch": batching.max_batch,
        "token_budget": batching.token_budget,
        "block_tokens": batching.block_tokens,
        "kv_memory_bytes": batching.kv_memory_bytes,
        "max_waiting": batching.max_waiting,
        "threads": config.worker.threads,
    }
