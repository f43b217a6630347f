"""A worker whose model makes vectors of texts: the same frames and the same life as `worker.py`, without a step.

Texts of one call are computed together, calls one after the other. Refuses to know HTTP, tenants and other workers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from backends import frames
from backends.api import BackendError, unable
from backends.engine.encoder import Encoder
from backends.engine.encoder_folder import open_encoder
from backends.engine.planning import Settings
from backends.engine.problems import CheckpointError
from backends.peer import Peer, log

STATS_EVERY_S = 1.0
EX_SOFTWARE, EX_CONFIG = 70, 78


class EncoderWorker:
    """Questions in, answers out; all but the computing runs on the loop's thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._computing = ThreadPoolExecutor(1, "encoder")
        self._encoder: Encoder | None = None
        self._peers: set[Peer] = set()
        self._waiting = 0
        self._is_draining = False
        self._exit: asyncio.Future[int] = self._loop.create_future()

    async def run(self, listener: socket.socket) -> int:
        """Serve until told to end; return the exit code."""
        self._loop.add_signal_handler(signal.SIGTERM, self._end, 0)
        self._loop.add_reader(0, self._parent_spoke)
        await self._loop.create_unix_server(lambda: Peer(self), sock=listener)
        opening = self._loop.run_in_executor(
            self._computing, open_encoder, self._settings.source, self._settings.context_tokens
        )
        opening.add_done_callback(self._opened)
        self._tick()
        return await self._exit

    def joined(self, peer: Peer) -> None:
        """Greet a gateway."""
        self._peers.add(peer)
        peer.send(self._greeting())

    def left(self, peer: Peer) -> None:
        """Forget a gateway; what it asked is answered to nobody."""
        self._peers.discard(peer)
        self._end_if_drained()

    def obey(self, peer: Peer, frame: frames.Frame) -> None:
        """Do what a frame asks."""
        match frame:
            case ["embed", int(number), wire]:
                call = frames.unpack_call(wire)
                self._answer(peer, number, lambda encoder: frames.pack_embedding(encoder.embed(call)))
            case ["tokenize", int(number), wire]:
                call = frames.unpack_call(wire)
                self._answer(peer, number, lambda encoder: encoder.tokens(call))
            case ["detokenize", int(number), list(token_ids)]:
                self._answer(peer, number, lambda encoder: encoder.text(token_ids))
            case ["submit", wire]:
                refusal = unable("answer in words, it makes embeddings")
                peer.send(frames.encode("error", frames.unpack_call(wire).id, frames.pack_error(refusal)))
            case ["cancel" | "hold" | "resume", str()]:
                pass  # of a call that was refused
            case ["drain"]:
                self._is_draining = True
                self._end_if_drained()
            case _:
                raise frames.FrameError(f"the tag {frame[0]!r} with {len(frame) - 1} members is not known")

    def _answer(self, peer: Peer, number: int, work: Callable[[Encoder], object]) -> None:
        if self._encoder is None or self._is_draining or self._waiting > self._settings.max_waiting:
            refusal = BackendError(
                "overloaded", "too many texts wait to be embedded", retryable=True, retry_after_s=1.0
            )
            peer.send(frames.encode("told", number, frames.pack_error(refusal)))
            return
        self._waiting += 1
        done = self._loop.run_in_executor(self._computing, work, self._encoder)
        done.add_done_callback(partial(self._tell, peer, number))

    def _tell(self, peer: Peer, number: int, done: asyncio.Future[object]) -> None:
        self._waiting -= 1
        error = _error_of(done)
        answer = frames.encode("told", number, frames.pack_error(error) if error else done.result())
        if len(answer) > frames.ANSWER_LIMIT_BYTES:
            error = BackendError("rejected", "this is too much for one answer; ask about less", code="too_large")
            answer = frames.encode("told", number, frames.pack_error(error))
        peer.send(answer)
        self._end_if_drained()

    def _opened(self, opening: asyncio.Future[Encoder]) -> None:
        if (exc := opening.exception()) is not None:
            is_known = isinstance(exc, CheckpointError)
            log("worker.failed", model=self._settings.model, error=str(exc) if is_known else repr(exc))
            self._end(EX_CONFIG if is_known else EX_SOFTWARE)
            return
        self._encoder = opening.result()
        log("worker.loaded", model=self._settings.model, context_tokens=self._encoder.context_tokens)
        self._broadcast(self._greeting())

    def _greeting(self) -> bytes:
        if self._encoder is None:
            return frames.encode("loading", "weights", 0.0)
        greeting = {
            "protocol": frames.PROTOCOL,
            "model": self._settings.model,
            "context_tokens": self._encoder.context_tokens,
            "slots": 1,
            "kv_blocks_total": 0,
            "pid": os.getpid(),
        }
        return frames.encode("hello", greeting)

    def _tick(self) -> None:
        self._broadcast(
            frames.encode("stats", {"running": min(self._waiting, 1), "waiting": max(self._waiting - 1, 0)})
        )
        self._loop.call_later(STATS_EVERY_S, self._tick)

    def _broadcast(self, frame: bytes) -> None:
        for peer in list(self._peers):
            peer.send(frame)

    def _parent_spoke(self) -> None:
        if not os.read(0, 4096):
            self._end(0)

    def _end_if_drained(self) -> None:
        if self._is_draining and not self._waiting:
            for peer in self._peers:
                peer.close()
            if not self._peers:
                self._end(0)

    def _end(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)


def _error_of(done: asyncio.Future[object]) -> BackendError | None:
    exc = done.exception()
    if exc is None or isinstance(exc, BackendError):
        return exc
    log("worker.embed_failed", error=repr(exc))
    return BackendError("broken", f"the texts could not be embedded: {exc!r}")
