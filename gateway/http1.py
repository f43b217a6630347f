"""Exchanges over HTTP/1.1: a listening port that turns each request into an `Exchange`, by aiohttp.

Refuses to know paths, bodies and what an exchange is for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import orjson
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.exchange import Exchange
from gateway.refusal import Refusal
from gateway.units import Address

_BACKLOG = 4096  # 500 connects at once wait 2 s for their first byte with 128 (measured)
_LAST_WORDS_S = 0.5
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpExchange:
    """One request of a port."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._response: web.StreamResponse  # set by start()
        self.is_ended = False

    @property
    def method(self) -> str:
        """The method in capitals."""
        return self._request.method

    @property
    def path(self) -> str:
        """The decoded path, without the query."""
        return self._request.path

    @property
    def query(self) -> str:
        """What follows the question mark, not decoded."""
        return self._request.rel_url.raw_query_string

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers, whatever their case."""
        return self._request.headers

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._request.remote or "unix"

    async def body(self, limit: int) -> bytes:
        """Read the whole body, or refuse it (413), before reading when its length is told."""
        if (self._request.content_length or 0) > limit:
            raise _too_large(limit)
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "unsupported_encoding", "the body is compressed; send it as it is")
        await self._invite()
        try:
            return await self._read(limit)
        except web.RequestPayloadError as exc:
            raise Refusal(400, "invalid_body", "the body's chunks are malformed") from exc

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Prepare the head; it leaves with the first write."""
        self._response = web.StreamResponse(status=status, headers={"server": "tidegate", **headers})
        if not self._request.content.is_eof():
            self._response.force_close()
        await self._response.prepare(self._request)

    async def write(self, chunk: bytes) -> None:
        """Send a piece of the body."""
        if chunk:
            await self._response.write(chunk)

    async def end(self) -> None:
        """Complete the answer."""
        await self._response.write_eof()
        self.is_ended = True

    def finish(self) -> web.StreamResponse:
        """Return the answer to aiohttp; one that was not ended is broken off, so that it cannot look whole."""
        if not self.is_ended and self._request.transport is not None:
            self._request.transport.abort()
        return self._response

    async def _read(self, limit: int) -> bytes:
        pieces, size = [], 0
        async for piece in self._request.content.iter_any():
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
        return b"".join(pieces)

    async def _invite(self) -> None:
        """Tell a client that asked first that its body is welcome."""
        if self.headers.get("expect", "").lower() == "100-continue":
            await self._request.writer.write(_CONTINUE)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, "request_too_large", f"the body is larger than {limit} bytes, which is max_body in gateway.toml"
    )


class _Connection(RequestHandler):
    """A connection that refuses in JSON what is no HTTP, as no path was ever read that would tell an API."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer and close."""
        super().handle_error(request, status, exc, message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        told = "the request is not valid HTTP" if status < 500 else "the gateway failed; its log says why"
        body = {"type": "error", "error": {"message": told, "type": kind, "param": None, "code": "invalid_http"}}
        response = web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
        response.force_close()
        return response


class _Server(web.Server):
    """Makes such connections."""

    def __call__(self) -> _Connection:
        """Take one more."""
        return _Connection(self, loop=self._loop, **self._kwargs)


class Port:
    """A listening address whose every request is given to `answer`, in a task that is cancelled if the client goes."""

    def __init__(self, answer: Callable[[Exchange], Awaitable[None]]) -> None:
        self._answer = answer
        # aiohttp cancels in its test server only, unless told; and it would unpack bombs.
        server = _Server(self._serve, handler_cancellation=True, access_log=None, auto_decompress=False)
        self._runner = web.ServerRunner(server, shutdown_timeout=_LAST_WORDS_S, handle_signals=False)
        self._open = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._site: web.TCPSite | None = None

    async def listen(self, address: Address) -> Address:
        """Begin to accept; returns the address with its real port. OSError when it is taken."""
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, address.host, address.port, backlog=_BACKLOG, reuse_address=True)
        try:
            await self._site.start()
        except OSError as exc:
            reason = (
                f"{address} cannot be listened on ({os.strerror(exc.errno or 0)}); stop what uses it, or set another"
            )
            raise OSError(exc.errno, f"{reason} listen or admin_listen under [server]") from exc
        return Address(address.host, self._runner.addresses[0][1])

    async def stop_accepting(self) -> None:
        """Take no more connections; those that are open go on."""
        if self._site is not None and self._site in self._runner.sites:
            await self._site.stop()

    async def idle(self) -> None:
        """Wait until no exchange is open."""
        await self._is_idle.wait()

    async def close(self) -> None:
        """Break off what is still open and close every connection; calling it twice is fine."""
        await self._runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = HttpExchange(request)
        with self._counted(), suppress(ConnectionResetError):
            await self._answer(exchange)
        return exchange.finish()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._open += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._is_idle.set()
