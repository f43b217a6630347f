"""The replicas of all releases: workers kept running and started again when they die, other servers watched.

Refuses to know calls, models' insides and who listens to its events.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from backends.api import Backend, BackendError, Replica
from backends.echo import CONTEXT_TOKENS as ECHO_CONTEXT
from backends.echo import EchoBackend
from backends.http import HttpBackend, Server
from backends.local import LocalBackend
from gateway.config import Config, Model, Release, WorkerSettings
from gateway.control import process
from gateway.control.pauses import Pauses
from gateway.control.store import StoreKeeper, keeps_sessions, store_settings, worker_sessions

Events = Callable[[str, dict[str, object]], None]
EXIT_PATIENCE_S = 1.0  # after its connection has ended: how it exits says more about why


class Keeper:
    """Keeps one worker running on one socket."""

    def __init__(
        self, replica_id: str, path: Path, told: Mapping[str, object], settings: WorkerSettings, events: Events
    ) -> None:
        self._path, self._told, self._settings = path, told, settings
        self._events, self._labels = events, {"replica": replica_id, "model": told["model"]}
        self._listener: socket.socket | None = None
        self._pauses = Pauses(settings)
        self._is_draining = False
        self.ended = asyncio.Event()
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
        try:
            await self._keep()
        finally:
            self.ended.set()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_draining:
            born_s = loop.time()
            reason = await self._live()
            self._tell("stopped" if self._is_draining else "died", reason=reason)
            if not self._is_draining:
                wait_s = self._pauses.after(loop.time() - born_s)
                self._tell("restarting", in_s=round(wait_s, 3), deaths=self._pauses.deaths)
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
    """All replicas of this gateway: workers, other servers, and echoes, which need neither; and the session store.

    `store` is None where no session is kept.
    """

    def __init__(self, config: Config, run_dir: Path, events: Events) -> None:
        self._config, self._run_dir, self._events = config, run_dir, events
        self._keepers: list[Keeper] = []
        self._servers: list[HttpBackend] = []
        self._keeping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.store: StoreKeeper | None = None
        if keeps_sessions(config):
            path, told = run_dir / "workers" / "store.sock", store_settings(config.sessions)
            self.store = StoreKeeper(path, told, config.worker, events)
        self.replicas: Sequence[Replica] = [
            Replica(
                replica_id,
                model.name,
                release.name,
                self._backend(replica_id, model, release),
                stabilises=model.stabilise_prompt and not release.url,
            )
            for replica_id, model, release in slots(config)
        ]

    async def start(self) -> None:
        """Bind all sockets, spawn the store and all workers, and wait for none. OSError when a socket fails."""
        try:
            if self.store is not None:
                await self.store.start()
            for keeper in self._keepers:
                keeper.listen()
        except OSError:
            await self.close()
            raise
        self._keeping = asyncio.create_task(_together(keeper.keep() for keeper in self._keepers))
        self._watching = asyncio.create_task(_together(server.watch() for server in self._servers))

    async def drain(self, timeout_s: float) -> None:
        """Let every worker answer and save what it has and end; return when all have, or the time is over.

        A worker that is still loading has nothing, and is not waited for.
        """
        serving = [keeper for keeper in self._keepers if (await keeper.backend.health()).ready]
        for keeper in self._keepers:
            keeper.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(keeper.ended.wait() for keeper in serving))

    async def close(self) -> None:
        """End all workers, by force if need be, and remove their sockets. Calling it twice is fine."""
        if self._keeping is not None and self._watching is not None:
            self._keeping.cancel()
            self._watching.cancel()
            await asyncio.wait({self._keeping, self._watching})
        for server in self._servers:
            await server.close()
        for keeper in self._keepers:
            keeper.close()
        if self.store is not None:  # after the workers, which still save what they have
            await self.store.close()

    def _backend(self, replica_id: str, model: Model, release: Release) -> Backend:
        if release.url:
            labels = {"replica": replica_id, "model": model.name}
            server = HttpBackend(
                upstream(model, release),
                lambda state, reason: self._events(f"upstream.{state}", {"reason": reason, **labels}),
            )
            self._servers.append(server)
            return server
        if release.source == "echo":
            return EchoBackend(model.name, context_tokens=release.context_tokens or ECHO_CONTEXT)
        path = self._run_dir / "workers" / f"{len(self._keepers)}.sock"
        told = worker_settings(self._config, model, release, store=self.store.path if self.store else None)
        keeper = Keeper(replica_id, path, told, self._config.worker, self._events)
        self._keepers.append(keeper)
        return keeper.backend


async def _together(lives: Iterable[Coroutine[None, None, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for life in lives:
            tasks.create_task(life)


def slots(config: Config) -> Iterator[tuple[str, Model, Release]]:
    """Yield every replica that the configuration asks for, under a name that stays over restarts."""
    for model in config.models:
        for release in model.releases:
            for number in range(release.replicas):
                yield f"{model.name}/{release.name}/{number}", model, release


def upstream(model: Model, release: Release) -> Server:
    """Say where the server of a release is and how it is spoken to."""
    named = (header.partition(":") for header in release.headers)
    return Server(
        url=release.url,
        model=release.upstream_model or model.name,
        dialect=release.dialect,
        api_key=release.api_key,
        headers=tuple((name.lower(), value.strip()) for name, _, value in named),
        context_tokens=release.context_tokens,
        connect_timeout_s=release.connect_timeout_s,
        first_byte_timeout_s=release.first_byte_timeout_s,
        idle_timeout_s=release.idle_timeout_s,
    )


def worker_settings(config: Config, model: Model, release: Release, *, store: Path | None = None) -> dict[str, object]:
    """Say what a worker is told on its standard input; `store` is the session store's socket."""
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
        "window_s": batching.window_s,
        "step_timeout_s": config.worker.step_timeout_s,
        "block_tokens": batching.block_tokens,
        "kv_memory_bytes": batching.kv_memory_bytes,
        "kv_format": batching.kv_format,
        "max_waiting": batching.max_waiting,
        "speculation": batching.speculation,
        "threads": config.worker.threads,
        "sessions": worker_sessions(config.sessions, store) if store is not None else None,
    }
