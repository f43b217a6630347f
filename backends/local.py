"""Our own worker as a backend: one connection, many calls. The client half; the other is `backends.worker`.

A call whose reader is slow is put on hold in the worker, so it never delays the others on the connection.
Refuses to know processes: whoever starts the worker calls `connect`, again after each restart.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

from backends import frames
from backends.api import BackendError, Call, Delta, Embedding, Health, SessionCounts

# Unread deltas of one call: from HOLD on the worker is asked to pause it, below RESUME to go on. What is on its way
# meanwhile is a step or two; a worker that has not paused at BOUND never will.
RESUME, HOLD, BOUND = 16, 64, 1024

Loading = Callable[[str, float], None]


class Inbox:
    """What has come for one call and was not read yet: at most BOUND deltas, then perhaps the error that ends it."""

    def __init__(self, sequences: int, tell: Callable[[str], None]) -> None:
        self._unread: deque[Delta] = deque()
        self._tell = tell
        self._error: BackendError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._unfinished = sequences
        self._is_held = False
        self.has_begun = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come from the worker."""
        return self._error is not None or not self._unfinished

    def put(self, delta: Delta) -> None:
        """Add a delta; pauses the call when its reader lags behind."""
        self._unread.append(delta)
        self.has_begun = True
        self._unfinished -= delta.finish is not None
        if len(self._unread) >= BOUND:
            self.fail(BackendError("broken", f"the worker sent {BOUND} deltas to a reader it was told to wait for"))
            self._tell("cancel")
        elif len(self._unread) >= HOLD and not self._is_held and not self.is_over:
            self._is_held = True
            self._tell("hold")
        self._wake()

    def fail(self, error: BackendError) -> None:
        """End the call after what came before."""
        if not self.is_over:
            self._error = error
        self._wake()

    def lose(self, reason: str) -> None:
        """End the call because the worker is gone; it may be tried elsewhere when nothing had come."""
        if self.has_begun:
            self.fail(BackendError("broken", f"the worker was lost while it answered: {reason}"))
        else:
            self.fail(BackendError("unreachable", f"the worker was lost: {reason}", retryable=True))

    async def get(self) -> Delta | None:
        """Wait for the next delta; None when all have been read."""
        while not self._unread:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._is_held and len(self._unread) <= RESUME and not self.is_over:
            self._is_held = False
            self._tell("resume")
        return self._unread.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """Frames to inboxes, from connect to loss."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading
        self._reader = frames.FrameReader(frames.ANSWER_LIMIT_BYTES)
        self._inboxes: dict[str, Inbox] = {}
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count()
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self.hello: dict[str, Any] = {}
        self.stats: dict[str, Any] = {}
        self.ready: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[str] = loop.create_future()

    @property
    def is_ready(self) -> bool:
        """Whether calls can be sent."""
        return bool(self.hello) and not self.lost.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Sort what came; frames that make no sense end the connection."""
        try:
            for frame in self._reader.feed(data):
                self._sort(frame)
        except frames.FrameError as exc:
            self._lose(str(exc))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        self._lose(str(exc) if exc else "its connection ended")

    def open(self, call: Call) -> Inbox:
        """Send a call."""
        inbox = Inbox(call.sequences, lambda tag: self._send(tag, call.id))
        submitted = frames.encode("submit", frames.pack_call(call))
        if len(submitted) > frames.SUBMIT_LIMIT_BYTES or self._transport is None:
            raise BackendError("rejected", f"a call of {len(submitted)} bytes is too large", code="request_too_large")
        self._inboxes[call.id] = inbox
        self._transport.write(submitted)
        return inbox

    def end(self, call_id: str) -> None:
        """Forget a call, and cancel it when it is not over."""
        inbox = self._inboxes.pop(call_id)
        if not inbox.is_over:
            self._send("cancel", call_id)

    async def ask(self, tag: str, about: object) -> Any:
        """Put a question and wait for its answer."""
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            self._send(tag, number, about)
            told = await answer
        finally:
            del self._questions[number]
        if isinstance(told, dict):
            raise frames.unpack_error(told)
        return told

    def drain(self) -> None:
        """Let the worker finish what it has, then end."""
        self._send("drain")

    def abort(self) -> None:
        """Drop the connection; the worker cancels what it had from it."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, *frame: object) -> None:
        if self._transport is not None and not self.lost.done():
            self._transport.write(frames.encode(*frame))

    def _sort(self, frame: frames.Frame) -> None:
        match frame:
            case ["step", list(entries)]:
                self._step(entries)
            case ["error", str(call_id), dict(wire)]:
                self._fail(call_id, frames.unpack_error(wire))
            case ["stats", dict(stats)]:
                self.stats = stats
            case ["told", int(number), told]:
                self._reply(number, told)
            case ["loading", str(what), int(fraction) | float(fraction)]:
                self._loading(what, fraction)
            case ["hello", {"protocol": frames.PROTOCOL} as hello]:
                self.hello = hello
                self.ready.set_result(None)
            case _:
                raise frames.FrameError(f"the worker sent a frame {frame[0]!r} that this gateway does not know")

    def _step(self, entries: list[list[Any]]) -> None:
        for entry in entries:
            if (inbox := self._inboxes.get(entry[0])) is not None:
                inbox.put(frames.unpack_delta(entry))

    def _fail(self, call_id: str, error: BackendError) -> None:
        if (inbox := self._inboxes.get(call_id)) is not None:
            inbox.fail(error)

    def _reply(self, number: int, told: object) -> None:
        if (question := self._questions.get(number)) is not None and not question.done():
            question.set_result(told)

    def _lose(self, reason: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(reason)
        for inbox in self._inboxes.values():
            inbox.lose(reason)
        gone = BackendError("unreachable", f"the worker was lost: {reason}", retryable=True)
        for waiting in (self.ready, *self._questions.values()):
            if not waiting.done():
                waiting.set_exception(gone)
        if not self.ready.cancelled():
            self.ready.exception()  # seen: nobody may be waiting for it


class LocalBackend:
    """See `api.Backend`. Calls fail as unreachable while there is no connected, loaded worker."""

    def __init__(self, path: Path, loading: Loading = lambda _what, _fraction: None) -> None:
        self._path, self._loading = path, loading
        self._connection: Connection | None = None

    async def connect(self) -> None:
        """Connect and wait until the worker is ready; BackendError when it is lost before."""
        await self.close()
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(
                lambda: Connection(self._loading), str(self._path)
            )
        except OSError as exc:
            raise BackendError("unreachable", f"{self._path}: {exc.strerror}", retryable=True) from exc
        self._connection = connection
        await connection.ready

    async def lost(self) -> str:
        """Wait until the connection is lost; return why."""
        return "it was never connected" if self._connection is None else await asyncio.shield(self._connection.lost)

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        """See `api.Backend`."""
        connection = self._connected()
        inbox = connection.open(call)
        try:
            while (delta := await inbox.get()) is not None:
                yield delta
        finally:
            connection.end(call.id)

    async def tokenize(self, call: Call) -> list[list[int]]:
        """See `api.Backend`."""
        return cast("list[list[int]]", await self._connected().ask("tokenize", frames.pack_call(call)))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `api.Backend`."""
        return str(await self._connected().ask("detokenize", list(token_ids)))

    async def embed(self, call: Call) -> Embedding:
        """See `api.Backend`."""
        return frames.unpack_embedding(await self._connected().ask("embed", frames.pack_call(call)))

    async def health(self) -> Health:
        """See `api.Backend`; the figures are at most a second old."""
        connection = self._connection
        if connection is None or not connection.is_ready:
            return Health(ready=False)
        return Health(
            ready=True,
            running=connection.stats.get("running", 0),
            waiting=connection.stats.get("waiting", 0),
            slots=connection.hello["slots"],
            kv_blocks_used=connection.stats.get("kv_blocks_used", 0),
            kv_blocks_total=connection.hello["kv_blocks_total"],
            drafted_tokens=connection.stats.get("drafted_tokens", 0),
            accepted_tokens=connection.stats.get("accepted_tokens", 0),
            context_tokens=connection.hello["context_tokens"],
            sessions=SessionCounts(**counts) if (counts := connection.stats.get("sessions")) else None,
        )

    def drain(self) -> None:
        """Let the worker finish what it has and end; it takes no new calls."""
        if self._connection is not None:
            self._connection.drain()

    async def close(self) -> None:
        """See `api.Backend`."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None or not self._connection.is_ready:
            raise BackendError("unreachable", "the worker is starting; try again", retryable=True, retry_after_s=1.0)
        return self._connection
