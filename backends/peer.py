"""One gateway's connection to a worker, and what a worker says to the pool that started it.

Refuses to know what a worker computes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Protocol, cast

import orjson

from backends import frames

UNSENT_LIMIT_BYTES = 64 << 20


def log(event: str, **fields: object) -> None:
    """Write one JSON line to standard error, where the pool reads it."""
    os.write(2, orjson.dumps({"event": event, **fields}) + b"\n")


class Serving(Protocol):
    """What a connection needs of its worker."""

    def joined(self, peer: Peer) -> None:
        """Greet a gateway."""
        ...

    def left(self, peer: Peer) -> None:
        """Cancel what a gateway asked for."""
        ...

    def obey(self, peer: Peer, frame: frames.Frame) -> None:
        """Do what a frame asks; FrameError when it makes no sense."""
        ...


class Peer(asyncio.Protocol):
    """One gateway's connection."""

    def __init__(self, worker: Serving) -> None:
        self._worker = worker
        self._reader = frames.FrameReader(frames.SUBMIT_LIMIT_BYTES)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let only our own user in."""
        self._transport = cast("asyncio.Transport", transport)
        uid = _peer_uid(transport.get_extra_info("socket"))
        if uid != os.getuid():
            log("worker.refused", uid=uid)
            self.abort()
            return
        self._worker.joined(self)

    def data_received(self, data: bytes) -> None:
        """Obey each frame; one that makes no sense ends the connection."""
        try:
            for frame in self._reader.feed(data):
                self._worker.obey(self, frame)
        except frames.FrameError as exc:
            log("worker.bad_frame", error=str(exc))
            self.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Nobody is left to hear the answers."""
        self._transport = None
        self._worker.left(self)

    def send(self, sent: bytes) -> None:
        """Write frames; a gateway that has stopped reading is given up."""
        if self._transport is None:
            return
        self._transport.write(sent)
        if self._transport.get_write_buffer_size() > UNSENT_LIMIT_BYTES:
            log("worker.peer_stuck", unsent_bytes=self._transport.get_write_buffer_size())
            self.abort()

    def close(self) -> None:
        """Send what is left, then drop the connection."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection and what was not sent."""
        if self._transport is not None:
            self._transport.abort()


def _peer_uid(peer: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
