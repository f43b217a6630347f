"""What answers which path of the admin port: health and metrics for everybody, the state for who has the token.

Refuses to know how replicas are run.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

from gateway.admin.sessions import ROOT, SessionsAdmin
from gateway.auth import has_key, key_hash
from gateway.chat import RequestPath
from gateway.exchange import Exchange
from gateway.guard import Guard
from gateway.plain import Answering, alive, allowed, guarded, ready, respond_json, series
from gateway.refusal import Refusal


@dataclass(slots=True)
class AdminPort:
    """Health, metrics and state of one gateway."""

    path: RequestPath
    guard: Guard
    token: str = field(repr=False)
    version: str
    sessions: SessionsAdmin
    started: float = field(default_factory=time.monotonic)

    async def answer(self, exchange: Exchange) -> None:
        """Answer whatever is asked of the admin port."""
        await guarded(exchange, self.guard, self._answering)

    def _answering(self, exchange: Exchange) -> Answering:
        answering = {
            "/healthz": alive,
            "/readyz": self._ready,
            "/metrics": self._metrics,
            "/admin/status": self._status,
        }.get(exchange.path)
        if exchange.path == ROOT or exchange.path.startswith(f"{ROOT}/"):
            self._check_token(exchange)
            return self.sessions.answering(exchange) or self._nothing(exchange)
        if answering is None:
            return self._nothing(exchange)
        return allowed(exchange, ("GET", "HEAD"), answering)

    def _nothing(self, exchange: Exchange) -> Answering:
        raise Refusal(404, "not_found", f"there is nothing at {exchange.path[:128]} on the admin port")

    async def _ready(self, exchange: Exchange) -> None:
        await ready(exchange, await self.path.health())

    async def _metrics(self, exchange: Exchange) -> None:
        await series(exchange, self.path)

    async def _status(self, exchange: Exchange) -> None:
        """Tell the version, the uptime, each replica's load, and what the session store holds."""
        self._check_token(exchange)
        uptime_s = round(time.monotonic() - self.started, 1)
        replicas = [
            {
                "id": replica.id,
                "model": replica.model,
                "release": replica.release,
                "outstanding": self.path.outstanding[replica.id],
                **asdict(await replica.backend.health()),
            }
            for replica in self.path.replicas()
        ]
        told = {"version": self.version, "uptime_s": uptime_s, "replicas": replicas}
        await respond_json(exchange, 200, {**told, "store": await self.sessions.stats()})

    def _check_token(self, exchange: Exchange) -> None:
        if not has_key(exchange.headers, key_hash(self.token)):
            raise Refusal(
                401,
                "invalid_admin_token",
                "the admin token is needed: send `Authorization: Bearer TOKEN` with admin_token of gateway.toml or, "
                "if that is empty, the content of run_dir/admin-token",
            )
