"""One client's connection to the store: frames in, each answered by a task of its own, answers out as they come.

A client that asks faster than it is answered is not read from; one that sends what is no frame is cut off.
Refuses to know how anything is done.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from sessioncache import wire
from sessioncache.client import StoreError
from sessioncache.prefixes import Handle
from sessioncache.problems import ChunkError, TierError

MOST_UNDER_WAY, MOST_HANDLES = 32, 4096
Answer: TypeAlias = "tuple[Any, Sequence[bytes]]"


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


Answering: TypeAlias = Callable[[Handles, dict[str, Any], bytes], Awaitable[Answer]]


class Connection:
    """See the module. `answer` may raise what `sessioncache.problems` and `StoreError` name."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Answering,
        log: Callable[..., None],
    ) -> None:
        self._reader, self._writer, self._answer, self._log = reader, writer, answer, log
        self._free = asyncio.Semaphore(MOST_UNDER_WAY)
        self._under_way: set[asyncio.Task[None]] = set()
        self.handles = Handles()

    async def serve(self) -> None:
        """Answer until the client is gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._read(tasks)
                for task in self._under_way:  # nobody is left to hear what comes of it
                    task.cancel()
        finally:
            self._writer.close()

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        try:
            while True:
                await self._free.acquire()
                message_bytes, body_bytes = wire.lengths(await self._reader.readexactly(wire.HEAD.size))
                message = wire.message_of(await self._reader.readexactly(message_bytes))
                body = await self._reader.readexactly(body_bytes)
                self._under_way.add(task := tasks.create_task(self._answered(message, body)))
                task.add_done_callback(self._under_way.discard)
        except wire.FrameError as exc:
            self._log("store.bad_frame", error=str(exc))
        except (OSError, EOFError):
            return

    async def _answered(self, message: dict[str, Any], body: bytes) -> None:
        try:
            told, payload = await self._told(message, body)
            self._writer.writelines(wire.encode({**told, "id": message["id"]}, payload))
            await self._writer.drain()
        except OSError:
            return
        finally:
            self._free.release()

    async def _told(self, message: dict[str, Any], body: bytes) -> Answer:
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


def is_ours(writer: asyncio.StreamWriter, uid: int) -> bool:
    """Whether the process at the other end is our own user's."""
    peer: socket.socket = writer.get_extra_info("socket")
    packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", packed)[1] == uid)
