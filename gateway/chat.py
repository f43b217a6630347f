"""The request path, top to bottom: one function for every dialect, and one for questions about tokens.

Refuses to know HTTP framing, any API's JSON and where replicas run.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

from backends.api import BackendError, Call, Delta, Health, Replica
from gateway.auth import Tenants
from gateway.deadlines import Deadlines
from gateway.dialects import Dialect, Endpoint
from gateway.exchange import Exchange, request_id_of, traceparent_of
from gateway.identity import session_of
from gateway.lastturns import LastTurns
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.questions import Question
from gateway.readiness import Readiness
from gateway.record import Record
from gateway.refusal import Refusal, refusal_of
from gateway.reply import Reply
from gateway.routing import Models, Outstanding, are_down, ordered
from gateway.settings import Model
from gateway.stabilise import stabilised

Attempt = Callable[[Replica], Awaitable[None]]

_ROUNDS = 2
_TRIES_A_ROUND = 3
_NOTICE_S = 1.0  # a worker's death is noticed within milliseconds; after this it was no death


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPath:
    """What every call passes through."""

    max_body_bytes: int
    ping_interval_s: float
    deadlines: Deadlines
    tenants: Tenants
    models: Models
    replicas: Callable[[], Sequence[Replica]]
    readiness: Readiness
    metrics: Metrics
    log: Log
    outstanding: Outstanding = field(default_factory=Outstanding)
    turns: LastTurns = field(default_factory=LastTurns)
    store_stats: Callable[[], Awaitable[Mapping[str, Any] | None]] | None = None

    async def handle(self, dialect: Dialect, exchange: Exchange) -> None:
        """Answer one call: who asks, what for, who can answer, and then piece by piece what they say."""
        async with self._opened(exchange, dialect) as (record, reply):
            call, model = await self._read(exchange, dialect, record)
            reply.try_for(call, dialect.answer(call, now=time.time()))
            async with reply.pinging(dialect.ping, every_s=self.ping_interval_s) if call.stream else nullcontext():
                await self._answer(model, reply, record, lambda replica: self._relay(replica, dialect, call, reply))

    async def ask(self, question: Question, exchange: Exchange) -> None:
        """Answer what a replica knows at once, without computing anything for it."""
        async with self._opened(exchange, question) as (record, reply):
            call, model = await self._read(exchange, question, record)
            await self._answer(model, reply, record, lambda replica: self._put(replica, question, call, reply))

    async def health(self) -> list[tuple[str, str, Health]]:
        """Return the load of each replica, as (model, replica, health)."""
        return [(each.model, each.id, await each.backend.health()) for each in self.replicas()]

    @asynccontextmanager
    async def _opened(self, exchange: Exchange, endpoint: Endpoint) -> AsyncIterator[tuple[Record, Reply]]:
        """Give an exchange its record and reply; whatever goes wrong is told to the client, and all is settled."""
        record = Record(exchange, request_id_of(exchange.headers), started=time.perf_counter())
        reply = Reply(endpoint, exchange, record, self.metrics)
        self.metrics.open_streams.inc()
        try:
            async with self.deadlines.limit():
                yield record, reply
        except Refusal as refusal:
            await reply.refuse(refusal)
        except BackendError as exc:
            await reply.refuse(refusal_of(exc))
        except asyncio.CancelledError:
            record.status = 499
            raise
        except ConnectionResetError:
            record.status = 499
        except Exception as exc:  # noqa: BLE001 (the top of a request's task: a bug becomes a 500 one can look up)
            self.log.failure("bug", exc, request_id=record.request_id)
            await reply.refuse(_bug(record.request_id))
        finally:
            self.metrics.open_streams.dec()
            record.settle(self.metrics, self.log, now=time.perf_counter())
            self.turns.note(record.tenant, record.session, record.usage, now=time.time())

    async def _read(self, exchange: Exchange, endpoint: Endpoint, record: Record) -> tuple[Call, Model]:
        """Find out who asks and what for; refuses without reading the body where that can be known."""
        tenant = self.tenants.identify(exchange.headers)
        record.tenant = tenant.name
        body = await exchange.body(self.max_body_bytes)
        call = endpoint.parse(body, call_id=uuid.uuid4().hex, tenant=tenant.name)
        model = self.models.find(call.model, tenant)
        record.model = model.name
        session = session_of(exchange.headers, call.body, tenant=tenant.name)
        record.session = session.id if session else None
        traceparent = traceparent_of(exchange.headers)
        return replace(call, session=record.session, traceparent=traceparent), model

    async def _answer(self, model: Model, reply: Reply, record: Record, attempt: Attempt) -> None:
        """Let the best replica try; until something is sent, a failure that may pass is tried elsewhere."""
        deadline = self.readiness.deadline()
        failure = BackendError("unreachable", "no replica could be reached")
        for _ in range(_ROUNDS):
            rings = self.readiness.rings
            for replica in await self._ready(model, deadline):
                record.replica = replica.id
                try:
                    return await attempt(replica)
                except BackendError as exc:
                    if reply.has_begun or not exc.retryable:
                        raise
                    failure = exc
            if failure.kind != "unreachable" or not await self.readiness.rang(rings, within_s=_NOTICE_S):
                break
        raise failure

    async def _ready(self, model: Model, deadline: float) -> Sequence[Replica]:
        """Return the replicas to try, best first; waits while none is ready."""
        while True:
            rings = self.readiness.rings
            replicas = self.replicas()
            health = {replica.id: await replica.backend.health() for replica in replicas}
            if ready := ordered(replicas, model.name, health, self.outstanding):
                return ready[:_TRIES_A_ROUND]
            if are_down(replicas, model.name, health):
                raise BackendError("unreachable", "the server behind the model cannot be reached")
            await self.readiness.changed(rings, deadline)

    async def _relay(self, replica: Replica, dialect: Dialect, call: Call, reply: Reply) -> None:
        """Give the replica's answer to the client; leaving early, for whatever reason, cancels it there."""
        stream = cast("AsyncGenerator[Delta]", replica.backend.stream(_read_by(replica, call)))
        try:
            with self.outstanding.given(replica.id, call.sequences):
                async with aclosing(stream) as deltas:
                    async for delta in deltas:
                        await reply.add(delta)
            await reply.finish()
        except BackendError:
            if not reply.has_begun:
                reply.try_for(call, dialect.answer(call, now=time.time()))
            raise

    async def _put(self, replica: Replica, question: Question, call: Call, reply: Reply) -> None:
        """Give the replica's answer to a question to the client."""
        told = await question.ask(_read_by(replica, call), replica.backend)
        await reply.tell(told.body, told.usage)


def _read_by(replica: Replica, call: Call) -> Call:
    """Return the call as a replica shall read it."""
    return stabilised(call) if replica.stabilises else call


def _bug(request_id: str) -> Refusal:
    return Refusal(500, "internal_error", f"the gateway failed; its log says why under request_id {request_id}")
