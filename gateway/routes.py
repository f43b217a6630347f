"""What answers which path of the data port; everything but the calls themselves is answered here.

Refuses to know how a call is answered.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import orjson

from backends.api import Health
from gateway import metrics
from gateway.chat import RequestPath
from gateway.dialects import Dialect
from gateway.dialects.openai import Chat, Completions, error
from gateway.exchange import Exchange, request_id_of, respond
from gateway.guard import Guard
from gateway.refusal import Refusal

Answering = Callable[[Exchange], Awaitable[None]]
CALLS: dict[str, Dialect] = {"/chat/completions": Chat(), "/completions": Completions()}


@dataclass(slots=True)
class DataPort:
    """The API and its health, with and without the /v1 prefix; `is_draining` refuses new calls."""

    path: RequestPath
    guard: Guard
    created: int = field(default_factory=lambda: int(time.time()))
    is_draining: bool = False

    async def answer(self, exchange: Exchange) -> None:
        """Answer whatever is asked, in the shape of the OpenAI API where nobody else is responsible."""
        await guarded(exchange, self.guard, self._answering)

    def _answering(self, exchange: Exchange) -> Answering:
        """Find what answers the path by the method, or refuse (404, 405)."""
        path = exchange.path.removeprefix("/v1")
        if dialect := CALLS.get(path):
            return allowed(exchange, ("POST",), lambda each: self._call(dialect, each))
        if path in {"/models", "/models/"} or path.startswith("/models/"):
            return allowed(exchange, ("GET", "HEAD"), self._models)
        health = {"/healthz": alive, "/readyz": self._ready, "/health": self._ready, "/metrics": self._metrics}
        if answering := health.get(exchange.path):
            return allowed(exchange, ("GET", "HEAD"), answering)
        raise Refusal(404, "not_found", f"there is nothing at {exchange.path[:128]}; the API is under /v1")

    async def _call(self, dialect: Dialect, exchange: Exchange) -> None:
        if self.is_draining:
            raise Refusal(503, "stopping", "the gateway is stopping; try again", retry_after_s=5)
        await self.path.handle(dialect, exchange)

    async def _ready(self, exchange: Exchange) -> None:
        await ready(exchange, [] if self.is_draining else await self.path.health())

    async def _metrics(self, exchange: Exchange) -> None:
        self.path.tenants.identify(exchange.headers)
        await series(exchange, self.path)

    async def _models(self, exchange: Exchange) -> None:
        """List what the tenant may call, or tell of one model."""
        tenant = self.path.tenants.identify(exchange.headers)
        windows = {model: health.context_tokens for model, _, health in await self.path.health()}
        name = exchange.path.removeprefix("/v1").removeprefix("/models").strip("/")
        if name:
            self.path.models.find(name, tenant)
        entries = []
        for each in (name,) if name else self.path.models.names(tenant):
            model = self.path.models.find(each, tenant).name
            entries.append(self._entry(each, model, windows.get(model, 0)))
        await respond_json(exchange, 200, entries[0] if name else {"object": "list", "data": entries})

    def _entry(self, name: str, model: str, context_tokens: int) -> dict[str, object]:
        entry: dict[str, object] = {"id": name, "object": "model", "created": self.created, "owned_by": "tidegate"}
        return entry | {"root": model, "max_model_len": context_tokens or None}


async def guarded(exchange: Exchange, guard: Guard, find: Callable[[Exchange], Answering]) -> None:
    """Let what `find` finds for the path answer, unless the guard, it, or the path's absence refuses."""
    try:
        guard.check(exchange.headers)
        await find(exchange)(exchange)
    except Refusal as refusal:
        await refuse(exchange, refusal)


def allowed(exchange: Exchange, methods: tuple[str, ...], answering: Answering) -> Answering:
    """Return `answering` if the method is one of these, else refuse (405)."""
    if exchange.method in methods:
        return answering
    allow = ", ".join(methods)
    raise Refusal(405, "method_not_allowed", f"{exchange.path} takes {allow}, not {exchange.method}", allow=allow)


async def alive(exchange: Exchange) -> None:
    """Say that this process runs."""
    await respond_json(exchange, 200, {"status": "ok"})


async def ready(exchange: Exchange, loads: Iterable[tuple[str, str, Health]]) -> None:
    """Say whether any replica serves."""
    if any(health.ready for _, _, health in loads):
        await respond_json(exchange, 200, {"status": "ready"})
    else:
        await respond_json(exchange, 503, {"status": "starting"}, {"retry-after": "1"})


async def series(exchange: Exchange, path: RequestPath) -> None:
    """Write all metrics, the replicas' as they are now."""
    path.metrics.observe_replicas(await path.health())
    headers = {"content-type": metrics.CONTENT_TYPE, "x-request-id": request_id_of(exchange.headers)}
    await respond(exchange, 200, headers, path.metrics.text())


async def refuse(exchange: Exchange, refusal: Refusal) -> None:
    """Say no outside of any call."""
    request_id = request_id_of(exchange.headers)
    status, body = error(refusal, request_id)
    headers = {"content-type": "application/json", "x-request-id": request_id, **refusal.headers}
    await respond(exchange, status, headers, body)


async def respond_json(exchange: Exchange, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    """Give a JSON answer."""
    headers = {"content-type": "application/json", "x-request-id": request_id_of(exchange.headers), **(headers or {})}
    await respond(exchange, status, headers, orjson.dumps(body))
