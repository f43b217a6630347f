"""Servers to put behind the gateway: another Tidegate with an echo model, and one that says just what it is told to."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from backends.http import HttpBackend, Server
from gateway.app import Gateway
from gateway.config import Config, Model, Release
from gateway.console import Console
from gateway.log import Log
from gateway.settings import Server as Ports
from gateway.units import Address

ANY_PORT = Address("127.0.0.1", 0)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
PATIENCE_S = 30.0

Line = bytes | asyncio.Event


def chunk(text: str = "", finish: str | None = None, **fields: object) -> bytes:
    """Write one event of a chat answer."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"choices": [choice], **fields}) + b"\n\n"


def status(code: int, body: object = None, *headers: str) -> bytes:
    """Write a whole answer with a status."""
    said = body if isinstance(body, bytes) else orjson.dumps(body)
    lines = [f"HTTP/1.1 {code} X", "content-type: application/json", f"content-length: {len(said)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + said


@dataclass
class Scripted:
    """A server that answers each POST with the lines of its script: bytes are sent, events waited for."""

    script: Sequence[Line] = ()
    models: bytes = field(default_factory=lambda: status(200, {"data": []}))
    port: int = 0
    asked: list[tuple[str, dict[str, str], dict[str, object]]] = field(default_factory=list)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    client_left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close, noting whether the client was there until the end."""
        try:
            path, headers = await _head(reader)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if path.endswith("/models"):
                writer.write(self.models)
                return
            self.asked.append((path, headers, orjson.loads(body)))
            self.was_asked.set()
            gone = asyncio.create_task(self._until_gone(reader))
            try:
                await self._say(writer)
            finally:
                gone.cancel()
        finally:
            writer.close()

    async def _say(self, writer: asyncio.StreamWriter) -> None:
        for line in self.script:
            if isinstance(line, bytes):
                writer.write(line)
                await writer.drain()
            else:
                await line.wait()

    async def _until_gone(self, reader: asyncio.StreamReader) -> None:
        await reader.read()
        self.client_left.set()


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    named = (line.partition(": ") for line in lines if line)
    return first.split(" ")[1], {name.lower(): value for name, _, value in named}


@asynccontextmanager
async def scripted(*script: Line, **fields: object) -> AsyncIterator[Scripted]:
    """Run a server with this script."""
    upstream = Scripted(script, **fields)  # type: ignore[arg-type]
    async with await asyncio.start_server(upstream.serve, "127.0.0.1", upstream.port) as server:
        upstream.port = server.sockets[0].getsockname()[1]
        yield upstream


@asynccontextmanager
async def backend_for(
    url: str, told: asyncio.Queue[str] | None = None, **settings: object
) -> AsyncIterator[HttpBackend]:
    """Give a backend whose server has been asked whether it is there; what it tells after that goes into `told`."""
    told = asyncio.Queue() if told is None else told
    server = Server(**{"url": url, "model": "m", **settings})  # type: ignore[arg-type]
    backend = HttpBackend(server, lambda state, _: told.put_nowait(state))
    watching = asyncio.create_task(backend.watch())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await told.get()
        yield backend
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        await backend.close()


@asynccontextmanager
async def gateway_of(run_dir: Path, *releases: Release, model: str = "m") -> AsyncIterator[Gateway]:
    """Run a gateway inside this process."""
    config = Config(
        server=Ports(listen=ANY_PORT, admin_listen=ANY_PORT), models=(Model(name=model, releases=releases),)
    )
    gateway = Gateway(
        config, run_dir=run_dir, token="t", log=Log(stream=io.StringIO()), console=Console(str, is_silent=True)
    )
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.close()
