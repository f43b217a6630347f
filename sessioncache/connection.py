"""One client's connection to the store: frames in, each answered by a task of its own, answers out as they come.

A client that asks faster than it is answered is not read from; one that sends what is no frame is cut off.
Refuses to know how anything is done.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from sessioncache import wire
from sessioncache.client import StoreError
from sessioncache.prefixes import Handle
from sessioncache.problems import ChunkError, TierError
from sessioncache.stream import Stream

MOST_UNDER_WAY, MOST_HANDLES = 32, 4096
Answer: TypeAlias = "tuple[Any, Sequence[wire.Octets]]"


class Handles:
    """The prefixes that one connection has looked up and not closed."""

    def __init__(self) -> None:
        self._open: dict[int, Handle] = {}
        self._last = 0

    def add(self, handle: Handle) -> int:
        """Keep a handle; StoreError when there are too many."""
        if len(self._open) >= MOST_HANDLES:
            raise StoreError("refused", f"{MOST_HANDLES} handles are open on this connection; close some")
        self._last += 1
        self._open[self._last] = handle
        return self._last

    def get(self, number: Any) -> Handle:
        """Return a handle; StoreError when it is not open."""
        if (handle := self._open.get(number)) is None:
            raise StoreError("refused", f"the handle {number!r} is not open on this connection")
        return handle

    def close(self, number: Any) -> None:
        """Forget a handle."""
        self._open.pop(number, None)

    def close_all_of(self, tenant: str) -> None:
        """Forget a tenant's handles: its secret is gone."""
        self._open = {number: each for number, each in self._open.items() if each.prefix.tenant != tenant}


Answering: TypeAlias = "Callable[[Handles, dict[str, Any], memoryview[int]], Awaitable[Answer]]"


class Connection:
    """See the module: a stream's side. `answer` may raise what `sessioncache.problems` and `StoreError` name.

    `admit` is asked once whether to talk to who has connected; `left` is told when nobody is there any more.
    """

    def __init__(
        self,
        answer: Answering,
        log: Callable[..., None],
        admit: Callable[[Connection, int], bool],
        left: Callable[[Connection], None],
    ) -> None:
        self._answer, self._log, self._admit, self._left = answer, log, admit, left
        self._under_way: set[asyncio.Task[None]] = set()
        self._stream: Stream | None = None
        self.handles = Handles()

    def opened(self, stream: Stream) -> None:
        """See `Side`; who is not admitted is cut off."""
        if self._admit(self, _uid(stream.socket())):
            self._stream = stream
        else:
            stream.abort()

    def arrived(self, message: dict[str, Any], body: memoryview[int]) -> None:
        """See `Side`; reads no more while enough is under way."""
        if self._stream is None:
            return
        self._under_way.add(task := asyncio.create_task(self._answered(self._stream, message, body)))
        task.add_done_callback(self._done)
        if len(self._under_way) >= MOST_UNDER_WAY:
            self._stream.pause()

    def ended(self, why: wire.FrameError | None) -> None:
        """See `Side`; nobody is left to hear what comes of what is under way."""
        for task in self._under_way:
            task.cancel()
        if why is not None:
            self._log("store.bad_frame", error=str(why))
        self._left(self)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._stream is not None and len(self._under_way) == MOST_UNDER_WAY - 1:
            self._stream.resume()

    async def _answered(self, stream: Stream, message: dict[str, Any], body: memoryview[int]) -> None:
        told, payload = await self._told(message, body)
        try:
            pieces = wire.encode({**told, "id": message["id"]}, payload)
        except wire.FrameError as exc:
            pieces = wire.encode({"id": message["id"], "error": "broken", "message": str(exc)})
        with suppress(ConnectionError):
            await stream.send(pieces)

    async def _told(self, message: dict[str, Any], body: memoryview[int]) -> Answer:
        """Answer one message; what goes wrong becomes the client's StoreError."""
        try:
            told, payload = await self._answer(self.handles, message, body)
        except StoreError as exc:
            return {"error": exc.kind, "message": str(exc)}, ()
        except (ChunkError, TierError) as exc:
            return {"error": "miss" if isinstance(exc, ChunkError) else "unreachable", "message": str(exc)}, ()
        except (KeyError, TypeError, ValueError, wire.FrameError) as exc:
            return {"error": "refused", "message": f"asked wrongly: {exc!r}"}, ()
        except Exception as exc:  # noqa: BLE001 - a fault of ours costs this answer, not those of all other calls
            self._log("store.fault", verb=message.get("verb"), error=repr(exc))
            return {"error": "broken", "message": str(exc)}, ()
        return {"told": told}, payload


def _uid(peer: socket.socket) -> int:
    """Return whose process is at the other end."""
    packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", packed)[1])
