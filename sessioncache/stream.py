"""One end of a connection of frames: read straight into memory of their own, written without being joined.

A frame costs two reads where its bytes are there, however large it is, and its body is handed on as it was read.
Refuses to know what the messages mean.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, Protocol, cast

from sessioncache import wire

SOCKET_BYTES = 4 << 20  # a chunk fits, so that who sends one and who reads it wait for each other less often


class Side(Protocol):
    """Who talks over a stream."""

    def opened(self, stream: Stream) -> None:
        """Take note of the connection."""
        ...

    def arrived(self, message: dict[str, Any], body: memoryview[int]) -> None:
        """Take a frame; FrameError ends the connection."""
        ...

    def ended(self, why: wire.FrameError | None) -> None:
        """Take note that nothing more will come, and why if the other end sent what is no frame."""
        ...


class Stream(asyncio.BufferedProtocol):
    """See the module."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._rest = self._frame = memoryview(bytearray(wire.HEAD.size))
        self._message_bytes: int | None = None  # of the frame that is being read; None while its head is
        self._why: wire.FrameError | None = None
        self._is_room, self._is_over = asyncio.Event(), asyncio.Event()
        self._is_room.set()
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether frames can still come and go."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, pieces: Sequence[wire.Octets]) -> None:
        """Write a frame; return when there is room for the next. ConnectionError when nobody reads any more."""
        if self._transport is None or not self.is_open:
            raise ConnectionResetError("the connection is closed")
        self._transport.writelines(pieces)
        await self._is_room.wait()

    def pause(self) -> None:
        """Read no more for now."""
        if self._transport is not None and self.is_open:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and self.is_open:
            self._transport.resume_reading()

    def socket(self) -> socket.socket:
        """Return what the frames travel over."""
        assert self._transport is not None, "it was opened"  # noqa: S101
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def over(self) -> None:
        """Wait until the connection has ended."""
        await self._is_over.wait()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=SOCKET_BYTES)
        self.socket().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._side.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview[int]:  # noqa: ARG002 - the head says how much there is
        """See `asyncio.BufferedProtocol`."""
        return self._rest

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._rest = self._rest[nbytes:]
        if self._rest:
            return
        try:
            self._filled()
        except wire.FrameError as exc:
            self._why = exc
            self.abort()

    def pause_writing(self) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._is_room.clear()

    def resume_writing(self) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._is_room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it was lost, it is lost
        """See `asyncio.BufferedProtocol`."""
        self._is_room.set()
        self._is_over.set()
        self._side.ended(self._why)

    def _filled(self) -> None:
        """Go on to the frame whose head was read, or hand on what was read and go on to the next head."""
        if (message_bytes := self._message_bytes) is None:
            self._message_bytes, body_bytes = wire.lengths(self._frame)
            self._rest = self._frame = memoryview(bytearray(self._message_bytes + body_bytes))
            return
        frame, self._message_bytes = self._frame, None
        self._rest = self._frame = memoryview(bytearray(wire.HEAD.size))
        self._side.arrived(wire.message_of(frame[:message_bytes]), frame[message_bytes:].toreadonly())
