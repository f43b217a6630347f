"""What answers which path of the data port.

Refuses to know how a call is answered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.chat import RequestPath
from gateway.cors import Cors
from gateway.dialects import Dialect, anthropic, openai
from gateway.dialects.anthropic import Messages
from gateway.dialects.openai import Chat, Completions
from gateway.dialects.responses import Responses
from gateway.dialects.stored import MemoryResponses
from gateway.embeddings import Embeddings
from gateway.exchange import Exchange, request_id_of
from gateway.guard import Guard
from gateway.listing import entry, listing
from gateway.openapi.document import document
from gateway.plain import Answering, SayingNo, alive, allowed, guarded, ready, respond_bytes, respond_json, series
from gateway.questions import CountTokens, Detokenize, Question, Tokenize
from gateway.refusal import Refusal

_READ = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path, and the methods that it takes."""

    methods: tuple[str, ...]
    answering: Answering


class DataPort:
    """The API and its health, each path with and without /v1; `is_draining` refuses new calls."""

    def __init__(self, path: RequestPath, guard: Guard, *, cors: Cors, version: str) -> None:
        self._path, self._guard, self._cors, self._version = path, guard, cors, version
        self._created = int(time.time())
        self._responses = Responses(MemoryResponses())
        self.is_draining = False
        self.routes: Mapping[str, Route] = {
            "/chat/completions": self._calls(Chat()),
            "/completions": self._calls(Completions()),
            "/responses": self._calls(self._responses),
            "/responses/{id}": Route((*_READ, "DELETE"), self._response),
            "/messages": self._calls(Messages()),
            "/messages/count_tokens": self._questions(CountTokens()),
            "/embeddings": self._questions(Embeddings()),
            "/tokenize": self._questions(Tokenize()),
            "/detokenize": self._questions(Detokenize()),
            "/models": Route(_READ, self._models),
            "/models/{id}": Route(_READ, self._model),
            "/openapi.json": Route(_READ, self._describe),
            "/version": Route(_READ, self._tell_version),
            "/health": Route(_READ, self._ready),
            "/healthz": Route(_READ, alive),
            "/readyz": Route(_READ, self._ready),
            "/metrics": Route(_READ, self._metrics),
        }

    async def answer(self, exchange: Exchange) -> None:
        """Answer whatever is asked, each API's paths in its own shape."""
        if await self._cors.answer_preflight(exchange):
            return
        await guarded(self._cors.shared(exchange), self._guard, self._answering, saying_no=saying_no(exchange))

    def _answering(self, exchange: Exchange) -> Answering:
        """Find what answers the path by the method, or refuse (404, 405)."""
        path = _path(exchange)
        collection, _, member = path[1:].partition("/")
        route = self.routes.get(path) or (self.routes.get(f"/{collection}/{{id}}") if member else None)
        if route is None:
            raise Refusal(404, "not_found", f"there is nothing at {exchange.path[:128]}; the API is under /v1")
        return allowed(exchange, route.methods, route.answering)

    def _calls(self, dialect: Dialect) -> Route:
        async def call(exchange: Exchange) -> None:
            self._refuse_while_draining()
            await self._path.handle(dialect, exchange)

        return Route(("POST",), call)

    def _questions(self, question: Question) -> Route:
        async def ask(exchange: Exchange) -> None:
            self._refuse_while_draining()
            await self._path.ask(question, exchange)

        return Route(("POST",), ask)

    def _refuse_while_draining(self) -> None:
        if self.is_draining:
            raise Refusal(503, "stopping", "the gateway is stopping; try again", retry_after_s=5)

    async def _response(self, exchange: Exchange) -> None:
        """Give or forget a response that the tenant has stored."""
        tenant = self._path.tenants.identify(exchange.headers).name
        act = self._responses.delete if exchange.method == "DELETE" else self._responses.retrieve
        body = act(_id(exchange), tenant=tenant)
        await respond_bytes(exchange, 200, body, request_id=request_id_of(exchange.headers))

    async def _models(self, exchange: Exchange) -> None:
        """List what the tenant may call."""
        tenant = self._path.tenants.identify(exchange.headers)
        windows = await self._windows()
        names = {name: self._path.models.find(name, tenant).name for name in self._path.models.names(tenant)}
        await respond_json(exchange, 200, listing([self._entry(name, names[name], windows) for name in names]))

    async def _model(self, exchange: Exchange) -> None:
        """Tell of one model."""
        name, tenant = _id(exchange), self._path.tenants.identify(exchange.headers)
        model = self._path.models.find(name, tenant)
        await respond_json(exchange, 200, self._entry(name, model.name, await self._windows()))

    async def _windows(self) -> dict[str, int]:
        return {model: health.context_tokens for model, _, health in await self._path.health()}

    def _entry(self, name: str, model: str, windows: Mapping[str, int]) -> dict[str, object]:
        return entry(name, root=model, created=self._created, context_tokens=windows.get(model, 0))

    async def _describe(self, exchange: Exchange) -> None:
        await respond_json(exchange, 200, document(version=self._version))

    async def _tell_version(self, exchange: Exchange) -> None:
        await respond_json(exchange, 200, {"version": self._version})

    async def _ready(self, exchange: Exchange) -> None:
        await ready(exchange, [] if self.is_draining else await self._path.health())

    async def _metrics(self, exchange: Exchange) -> None:
        self._path.tenants.identify(exchange.headers)
        await series(exchange, self._path)


def saying_no(exchange: Exchange) -> SayingNo:
    """Return how the API that is spoken says no: Anthropic's on its paths, and where its clients say so."""
    speaks_anthropic = _path(exchange).startswith("/messages") or "anthropic-version" in exchange.headers
    return anthropic.error if speaks_anthropic else openai.error


def _path(exchange: Exchange) -> str:
    """Return the path below the API's root."""
    path = exchange.path.rstrip("/")
    return path.removeprefix("/v1") if path.startswith("/v1/") else path


def _id(exchange: Exchange) -> str:
    """Return what follows the second slash: names of models have slashes too."""
    return _path(exchange).split("/", 2)[2]
