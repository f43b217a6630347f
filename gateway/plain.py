"""Answers that are no call's: health, metrics, JSON, and saying no.

Refuses to know which path is asked for what.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import orjson

from backends.api import Health
from gateway import metrics
from gateway.chat import RequestPath
from gateway.dialects.openai import error
from gateway.exchange import Exchange, id_headers, request_id_of, respond
from gateway.guard import Guard
from gateway.refusal import Refusal

Answering = Callable[[Exchange], Awaitable[None]]
SayingNo = Callable[[Refusal, str], tuple[int, bytes]]


async def guarded(
    exchange: Exchange, guard: Guard, find: Callable[[Exchange], Answering], *, saying_no: SayingNo = error
) -> None:
    """Let what `find` finds for the path answer, unless the guard, it, or the path's absence refuses."""
    try:
        guard.check(exchange.headers)
        await find(exchange)(exchange)
    except Refusal as refusal:
        request_id = request_id_of(exchange.headers)
        status, body = saying_no(refusal, request_id)
        await respond_bytes(exchange, status, body, request_id=request_id, headers=refusal.headers)


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
    """Write all metrics, the replicas' and the session store's as they are now."""
    path.metrics.observe_replicas(await path.health())
    if path.store_stats is not None:
        path.metrics.observe_store(await path.store_stats())
    headers = {"content-type": metrics.CONTENT_TYPE, **id_headers(request_id_of(exchange.headers))}
    await respond(exchange, 200, headers, path.metrics.text())


async def respond_json(exchange: Exchange, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    """Give a JSON answer."""
    request_id = request_id_of(exchange.headers)
    await respond_bytes(exchange, status, orjson.dumps(body), request_id=request_id, headers=headers)


async def respond_bytes(
    exchange: Exchange, status: int, body: bytes, *, request_id: str, headers: dict[str, str] | None = None
) -> None:
    """Give an answer that is JSON already."""
    told = {"content-type": "application/json", **id_headers(request_id), **(headers or {})}
    await respond(exchange, status, told, body)
