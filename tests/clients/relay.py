"""A relay between a client and a gateway: keeps what was asked, and misbehaves where its path says so.

`/NAME/FAULT/...` stands for `/...` of the gateway; NAME tells one client's requests from another's. Faults: `none`
passes everything on; a number is refused with that status, in the words Tidegate has for it; `cut` breaks the
connection after some events, or in the middle of a whole answer, as the death of the gateway would.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp import web

from gateway.dialects import Dialect
from gateway.dialects.anthropic import Messages
from gateway.dialects.openai import Chat
from gateway.refusal import Refusal

_REFUSALS = {
    "401": Refusal(401, "invalid_api_key", "the API key is not known here"),
    "429": Refusal(429, "rate_limited", "team-a has used its requests of this minute", retry_after_s=1),
}
_DIALECTS: Mapping[str, Dialect] = {"/v1/messages": Messages()}
_EVENTS_BEFORE_THE_CUT = 400  # with fewer, a client may see the cut before it has read the first event
_PATIENCE_S = 60
_HOP_BY_HOP = {"host", "content-length", "transfer-encoding", "connection", "content-encoding", "date", "server"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came in."""

    name: str
    fault: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    answer: bytearray


class Relay:
    """What was asked, and where to ask."""

    def __init__(self, gateway: str) -> None:
        self.asked: list[Asked] = []
        self.url = ""
        self._gateway = gateway
        self._is_open, self._closing = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_open.wait(_PATIENCE_S), "the relay did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def tries(self, name: str, fault: str) -> int:
        """Count how often one client asked for an answer under one fault."""
        return sum(each.method == "POST" and (each.name, each.fault) == (name, fault) for each in self.asked)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        runner = web.ServerRunner(web.Server(self._answer, handler_cancellation=True), shutdown_timeout=0)
        await runner.setup()
        async with aiohttp.ClientSession(auto_decompress=False) as self._http:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0]
            self.url = f"http://{host}:{port}"
            self._is_open.set()
            await self._closing.wait()
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        _, name, fault, path = request.raw_path.split("/", 3)
        asked = Asked(
            name, fault, request.method, f"/{path}", request.headers.copy(), await request.read(), bytearray()
        )
        self.asked.append(asked)
        if fault in _REFUSALS:
            return refused(asked, _REFUSALS[fault])
        return await self._pass_on(request, asked)

    async def _pass_on(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        url = self._gateway + asked.path
        async with self._http.request(asked.method, url, headers=plain(asked.headers), data=asked.body) as answer:
            response = web.StreamResponse(status=answer.status, headers=plain(answer.headers))
            if not is_stream(answer):
                response.content_length = answer.content_length
            await response.prepare(request)
            with suppress(ConnectionResetError):  # a client may leave; closing our side tells the gateway
                await copy(answer, response, request, asked)
        return response


async def copy(
    answer: aiohttp.ClientResponse, response: web.StreamResponse, request: web.BaseRequest, asked: Asked
) -> None:
    """Copy the answer as it comes, up to the middle of the piece in which it is cut."""
    async for piece in answer.content.iter_any():
        asked.answer.extend(piece)
        if asked.fault == "cut" and (not is_stream(answer) or asked.answer.count(b"\n\n") > _EVENTS_BEFORE_THE_CUT):
            await response.write(piece[: len(piece) // 2])
            assert request.transport
            request.transport.close()
            return
        await response.write(piece)


def is_stream(answer: aiohttp.ClientResponse) -> bool:
    """Whether an answer is a stream of events."""
    return answer.content_type == "text/event-stream"


def refused(asked: Asked, refusal: Refusal) -> web.Response:
    """Write what Tidegate would."""
    status, body = _DIALECTS.get(asked.path, Chat()).error(refusal, "relayed")
    return web.Response(status=status, body=body, headers=refusal.headers, content_type="application/json")


def plain(headers: Mapping[str, str]) -> dict[str, str]:
    """Leave out what belongs to one connection."""
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
