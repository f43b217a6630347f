"""A loopback server that answers every request with bytes prepared beforehand, for the real SDKs to read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager


@asynccontextmanager
async def replayed(
    pieces: Iterable[bytes], *, status: int = 200, kind: str = "text/event-stream"
) -> AsyncIterator[str]:
    """Serve the pieces, in one TCP write each, as the answer to every request; yields the base URL."""
    head = f"HTTP/1.1 {status} Whatever\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode()
    answer = [head, *pieces]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        length = request.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        await reader.readexactly(int(length or 0))
        for piece in answer:
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
