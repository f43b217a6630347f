"""A wire with faults: a loopback proxy that cuts, alters, holds or answers in the server's place, as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

REFUSALS = {
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "403": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
}
SOUND_BYTES = 4000  # a head passes; what is cut or altered is a body


class Wire:
    """A proxy before one server. `fault`: "", "500", "403", "cut", "corrupt", "hold" or "closed"."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname, address.port
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.url = ""
        self.fault = ""

    def breaks(self, fault: str) -> None:
        """Have a fault from now on; connections that are open are closed."""
        self.fault = fault
        for writer in self._writers:
            writer.close()

    def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection, until `aclose` at the latest."""
        serving = asyncio.create_task(self._accepted(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def aclose(self) -> None:
        """End every connection, and wait until all have ended."""
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError, EOFError):
                await self._serve(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault == "closed":
            return
        if self.fault in REFUSALS:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(REFUSALS[self.fault])
            await writer.drain()
            return
        behind, there = await asyncio.open_connection(self._host, self._port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copied(reader, there))
                await self._back(behind, writer)
                there.close()
                writer.close()
        finally:
            there.close()

    async def _back(self, behind: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while piece := await behind.read(1 << 16):
            if self.fault == "hold":
                await asyncio.Event().wait()
            if passed + len(piece) > SOUND_BYTES and self.fault == "cut":
                writer.write(piece[: SOUND_BYTES // 2])
                return
            if len(piece) > SOUND_BYTES and self.fault == "corrupt":
                piece = piece[:-9] + bytes([piece[-9] ^ 1]) + piece[-8:]
            passed += len(piece)
            writer.write(piece)
            await writer.drain()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()


@asynccontextmanager
async def faulty(url: str) -> AsyncIterator[Wire]:
    """Put a wire before a server."""
    wire = Wire(url)
    server = await asyncio.start_server(wire.accepted, "127.0.0.1", 0)
    scheme, path = urlsplit(url).scheme, urlsplit(url).path
    wire.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}"
    try:
        yield wire
    finally:
        server.close()
        await wire.aclose()
