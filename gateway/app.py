"""The composition root: what a gateway is built of, in which order it starts, drains and stops.

Refuses to know the command line.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from gateway.admin.port import AdminPort
from gateway.admin.sessions import SessionsAdmin
from gateway.auth import open_tenants
from gateway.chat import RequestPath
from gateway.console import Console
from gateway.control.pool import Pool
from gateway.cors import Cors
from gateway.deadlines import Deadlines
from gateway.guard import Guard
from gateway.http1 import Port
from gateway.log import Level, LibraryLines, Log
from gateway.metrics import Metrics
from gateway.readiness import Readiness
from gateway.routes import DataPort
from gateway.routing import Models
from gateway.rundir import TOKEN_FILE, admin_token, open_run_dir
from gateway.settings import Config

_LAST_WORDS_S = 2.0
_ALARMING = {
    *("worker.died", "worker.restarting", "worker.stderr", "upstream.down"),
    *("store.died", "store.restarting", "store.stderr", "store.failed", "store.pass_failed", "store.drain_cut_off"),
    "store.tier_failing",
}


class Gateway:
    """Everything of one gateway process; `start`, then `drain` as long as there is time, then `close`."""

    def __init__(self, config: Config, *, run_dir: Path, token: str, log: Log, console: Console) -> None:
        server = config.server
        self._config, self._log, self._console = config, log, console
        self._news: Level = "info" if console.is_silent else "debug"  # what the console tells needs no second line
        self._readiness = Readiness(most=config.batching.max_waiting, patience_s=config.worker.start_timeout_s)
        self._deadlines = Deadlines(server.request_timeout_s)
        self._metrics = Metrics()
        self._pool = Pool(config, run_dir, self._pool_event)
        self._path = path = RequestPath(
            max_body_bytes=server.max_body_bytes,
            ping_interval_s=server.ping_interval_s,
            deadlines=self._deadlines,
            tenants=open_tenants(config),
            models=Models(config.models),
            replicas=lambda: self._pool.replicas,
            readiness=self._readiness,
            metrics=self._metrics,
            log=log,
            store_stats=self._pool.store.stats if self._pool.store else None,
        )
        release = version("tidegate")
        cors = Cors(server.cors_origins)
        self._data = DataPort(path, Guard(server.listen, server.allowed_hosts, cors=cors), cors=cors, version=release)
        sessions = SessionsAdmin(self._pool.store, path.turns)
        admin = AdminPort(path, Guard(server.admin_listen, server.allowed_hosts), token, release, sessions)
        self._data_port, self._admin_port = Port(self._data.answer), Port(admin.answer)
        self.address, self.admin_address = server.listen, server.admin_listen

    async def start(self) -> None:
        """Listen, then start the workers: health and early calls are answered meanwhile."""
        server = self._config.server
        self.address = await self._data_port.listen(server.listen)
        self.admin_address = await self._admin_port.listen(server.admin_listen)
        self._log.event("listening", level=self._news, address=str(self.address), admin=str(self.admin_address))
        await self._pool.start()
        for model, replica, health in await self._path.health():
            if health.ready:  # the echo model is ready without anybody who would say so
                self._console.ready(replica, model, self.address)

    async def drain(self) -> None:
        """Take nothing new and wait until every call has been answered and its session saved."""
        self._log.event("draining", level=self._news)
        self._data.is_draining = True
        await self._data_port.stop_accepting()
        await self._data_port.idle()
        await self._pool.drain(self._config.server.drain_timeout_s)

    async def close(self) -> None:
        """Refuse what still runs, in words its client sees; then stop the workers and the ports."""
        self._data.is_draining = True
        self._deadlines.end_all()
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._data_port.idle()
        except TimeoutError:
            self._log.event("cut_off", level="warning")
        await self._pool.close()
        await self._data_port.close()
        await self._admin_port.close()
        self._log.event("stopped", level=self._news)

    def _pool_event(self, event: str, fields: dict[str, object]) -> None:
        """Tell everybody who cares what has become of a replica."""
        replica, model = str(fields.get("replica", "")), str(fields.get("model", ""))
        match event:
            case "worker.loading":
                self._console.loading(replica, str(fields.get("what")), float(str(fields.get("fraction", 0))))
                return
            case "worker.runner" if fields.get("reason"):
                self._console.line(f"{replica}: computes in torch, several times slower: {fields['reason']}")
            case "worker.ready" | "upstream.ready":
                self._console.ready(replica, model, self.address)
            case "worker.restarting":
                self._metrics.worker_restarts.labels(model, replica).inc()
        level: Level = "warning" if event in _ALARMING else self._news
        self._log.write(level, event, fields)
        self._readiness.ring()


class StopSignals:
    """SIGINT and SIGTERM: the first asks for a drained stop, the second for one at once."""

    def __init__(self) -> None:
        self.asked, self.insisted = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._take)

    def _take(self) -> None:
        (self.insisted if self.asked.is_set() else self.asked).set()


async def serve(config: Config, console: Console) -> None:
    """Run a gateway until a signal stops it. OSError when a port is taken, RunDirError when there is no folder."""
    signals = StopSignals()
    log = Log(level=config.log.level, form=config.log.format)
    logging.getLogger().addHandler(LibraryLines(log))
    with ExitStack() as stack:
        run_dir = stack.enter_context(open_run_dir(config.server.run_dir))
        token = stack.enter_context(admin_token(run_dir, config.server.admin_token))
        gateway = Gateway(config, run_dir=run_dir, token=token, log=log, console=console)
        try:
            await gateway.start()
            token_file = None if config.server.admin_token else run_dir / TOKEN_FILE
            console.listening(gateway.address, gateway.admin_address, token_file)
            await signals.asked.wait()
            console.line(f"stopping: running calls have {config.server.drain_timeout_s:g} s; again to stop at once")
            await _drain(gateway, signals.insisted, config.server.drain_timeout_s)
        finally:
            await gateway.close()


async def _drain(gateway: Gateway, insisted: asyncio.Event, timeout_s: float) -> None:
    """Wait until all calls are answered, the time is over, or somebody insists."""
    tasks = {asyncio.create_task(gateway.drain()), asyncio.create_task(insisted.wait())}
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
