"""The worker process: takes calls from gateways over a unix socket, has the engine compute them, sends what comes out.

Started by the gateway's pool as `python -m backends.worker --fd N`, with its settings as one JSON line on standard
input. It ends when that input ends, so it never outlives its gateway.

Refuses to know HTTP, tenants and other workers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

import orjson

from backends import frames
from backends.api import BackendError, Call, Delta, unable
from backends.encoder_worker import EncoderWorker
from backends.engine import Engine, Event, Prepared
from backends.engine.encoder_folder import is_encoder
from backends.engine.loading import Choice, load
from backends.engine.planning import Settings, settings_of
from backends.engine.problems import CheckpointError
from backends.engine.thread import EngineThread
from backends.peer import Peer, log
from backends.sessions import Sessions

Made = TypeVar("Made")
STATS_EVERY_S = 1.0
EX_SOFTWARE, EX_CONFIG = 70, 78


@dataclass(slots=True)
class Live:
    """A call that is not answered yet: whose it is, and how many of its answers are still to end."""

    peer: Peer
    unfinished: int


class Worker:
    """The asyncio half: who asked for what. All of it runs on the loop's thread, but for the `Listener` methods."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._thread = EngineThread(
            lambda: load(settings, self._progress, self._chosen), self, window_s=settings.window_s
        )
        self._tokenizing = ThreadPoolExecutor(1, "tokenizer")
        self._engine: Engine | None = None
        self._sessions: Sessions | None = None
        self._restoring: dict[str, asyncio.Task[None]] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._peers: set[Peer] = set()
        self._calls: dict[str, Live] = {}
        self._preparing = 0
        self._is_draining = False
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._last_loading = frames.encode("loading", "start", 0.0)

    async def run(self, listener: socket.socket) -> int:
        """Serve until told to end; return the exit code."""
        self._loop.add_signal_handler(signal.SIGTERM, self._end, 0)
        self._loop.add_reader(0, self._parent_spoke)
        await self._loop.create_unix_server(lambda: Peer(self), sock=listener)
        self._thread.start()
        self._tick()
        return await self._exit

    def joined(self, peer: Peer) -> None:
        """Greet a gateway with how far we are."""
        self._peers.add(peer)
        peer.send(self._hello(self._engine) if self._engine else self._last_loading)

    def left(self, peer: Peer) -> None:
        """Cancel what a gateway asked for."""
        self._peers.discard(peer)
        for call_id in [call_id for call_id, live in self._calls.items() if live.peer is peer]:
            self._cancel(call_id)
        self._end_if_drained()

    def obey(self, peer: Peer, frame: frames.Frame) -> None:
        """Do what a frame asks."""
        match frame:
            case ["submit", call]:
                self._submit(peer, frames.unpack_call(call))
            case ["cancel", str(call_id)]:
                self._cancel(call_id)
                self._end_if_drained()
            case ["hold", str(call_id)]:
                self._thread.order(call_id, lambda engine, _: engine.hold(call_id))
            case ["resume", str(call_id)]:
                self._thread.order(call_id, lambda engine, _: engine.resume(call_id))
            case ["tokenize", request_id, call]:
                asked = frames.unpack_call(call)
                self._question(peer, request_id, lambda engine: engine.tokens(asked))
            case ["detokenize", request_id, list(token_ids)]:
                self._question(peer, request_id, lambda engine: engine.text(token_ids))
            case ["embed", number, _]:
                peer.send(frames.encode("told", number, frames.pack_error(unable("make embeddings"))))
            case ["drain"]:
                self._is_draining = True
                self._end_if_drained()
            case _:
                raise frames.FrameError(f"the tag {frame[0]!r} with {len(frame) - 1} members is not known")

    # Listener: called from the engine's thread

    def loaded(self, engine: Engine) -> None:
        """Take calls from now on."""
        self._loop.call_soon_threadsafe(self._ready, engine)

    def told(self, events: list[Event]) -> None:
        """Send what a step brought."""
        self._loop.call_soon_threadsafe(self._deliver, events)

    def failed(self, event: str, reason: str, *, is_final: bool) -> None:
        """Say what failed; the pool starts a new process after a final failure."""
        log(event, model=self._settings.model, error=reason)
        if is_final:
            self._loop.call_soon_threadsafe(self._end, EX_CONFIG if event == "worker.failed" else EX_SOFTWARE)

    def _progress(self, what: str, fraction: float) -> None:
        self._loop.call_soon_threadsafe(self._loading, frames.encode("loading", what, fraction))

    def _chosen(self, choice: Choice) -> None:
        log("worker.runner", model=self._settings.model, **asdict(choice))

    # On the loop's thread

    def _loading(self, frame: bytes) -> None:
        self._last_loading = frame
        self._broadcast(frame)

    def _ready(self, engine: Engine) -> None:
        self._engine = engine
        self._open_sessions(engine)
        self._loop.run_in_executor(None, engine.warm).add_done_callback(_warmed)
        log("worker.loaded", model=self._settings.model, context_tokens=engine.context_tokens)
        self._broadcast(self._hello(engine))

    def _open_sessions(self, engine: Engine) -> None:
        if self._settings.sessions is None:
            return
        if engine.kv is None:
            log("session.off", model=self._settings.model, reason="torch computes, and has no codec")
            return
        self._sessions = Sessions(engine, engine.kv, self._thread, self._settings.sessions)

    def _hello(self, engine: Engine) -> bytes:
        greeting = {
            "protocol": frames.PROTOCOL,
            "model": self._settings.model,
            "context_tokens": engine.context_tokens,
            "slots": self._settings.max_batch,
            "kv_blocks_total": engine.blocks.total,
            "pid": os.getpid(),
        }
        return frames.encode("hello", greeting)

    def _submit(self, peer: Peer, call: Call) -> None:
        if call.id in self._calls:
            raise frames.FrameError(f"the call id {call.id} is in use")
        if (refusal := self._refusal()) is not None:
            peer.send(frames.encode("error", call.id, frames.pack_error(refusal)))
            return
        self._calls[call.id] = Live(peer, call.sequences)
        self._beside(lambda engine: self._prepare(engine, call), partial(self._prepared, call.id))

    def _refusal(self) -> BackendError | None:
        if self._engine is None:
            return BackendError("unreachable", "the worker is loading its model", retryable=True)
        if self._is_draining:
            return BackendError("unreachable", "the worker is stopping", retryable=True)
        if self._preparing + len(self._restoring) > self._settings.max_waiting + self._settings.max_batch:
            return BackendError("overloaded", "too many calls arrive at once", retryable=True, retry_after_s=1.0)
        return None

    def _beside(self, work: Callable[[Engine], Made], then: Callable[[asyncio.Future[Made]], None]) -> None:
        """Turn text into tokens, or back, beside the loop, as a long text takes a while."""
        if self._engine is None:
            raise frames.FrameError("a call came before the hello")
        self._preparing += 1
        self._loop.run_in_executor(self._tokenizing, work, self._engine).add_done_callback(then)

    def _prepared(self, call_id: str, done: asyncio.Future[Prepared]) -> None:
        self._preparing -= 1
        if call_id not in self._calls:
            return
        if (error := _error_of(done)) is not None:
            self._deliver([(call_id, error)])
            return
        if self._sessions is None:
            self._stand_in_line(done.result())
        else:
            self._restoring[call_id] = asyncio.create_task(self._restore(self._sessions, done.result()))

    def _prepare(self, engine: Engine, call: Call) -> Prepared:
        prepared = engine.prepare(call)
        return self._sessions.diagnosed(prepared) if self._sessions is not None else prepared

    async def _restore(self, sessions: Sessions, prepared: Prepared) -> None:
        """Let a call stand in line behind what is stored of its prompt; whatever fails there, it is computed."""
        call_id = prepared.call.id
        try:
            prepared = await sessions.restored(prepared)
        except Exception as exc:  # noqa: BLE001 - the top of the task: a fault of ours costs time and no answer
            log("session.restore_broken", error=repr(exc))
        finally:
            del self._restoring[call_id]
        self._stand_in_line(prepared)

    def _stand_in_line(self, prepared: Prepared) -> None:
        self._thread.order(prepared.call.id, lambda engine, now: engine.submit(prepared, now))

    def _question(self, peer: Peer, number: int, work: Callable[[Engine], object]) -> None:
        if (refusal := self._refusal()) is not None:
            peer.send(frames.encode("told", number, frames.pack_error(refusal)))
        else:
            self._beside(work, partial(self._tell, peer, number))

    def _tell(self, peer: Peer, number: int, done: asyncio.Future[object]) -> None:
        self._preparing -= 1
        error = _error_of(done)
        answer = frames.encode("told", number, frames.pack_error(error) if error else done.result())
        if len(answer) > frames.ANSWER_LIMIT_BYTES:
            error = BackendError("rejected", "these are too many tokens to tell; ask about less", code="too_large")
            answer = frames.encode("told", number, frames.pack_error(error))
        peer.send(answer)

    def _cancel(self, call_id: str) -> None:
        if (restoring := self._restoring.get(call_id)) is not None:
            restoring.cancel()
        if self._calls.pop(call_id, None) is not None:
            self._thread.order(call_id, lambda engine, _: engine.cancel(call_id))

    def _deliver(self, events: list[Event]) -> None:
        """One write a step for all calls of a connection."""
        steps: dict[Peer, list[object]] = {}
        for call_id, event in events:
            if (live := self._calls.get(call_id)) is None:
                continue
            if isinstance(event, Delta):
                steps.setdefault(live.peer, []).append(frames.pack_delta(call_id, event))
                live.unfinished -= event.finish is not None
            else:
                live.unfinished = 0
                live.peer.send(frames.encode("error", call_id, frames.pack_error(event)))
            if not live.unfinished:
                del self._calls[call_id]
        for peer, entries in steps.items():
            peer.send(frames.encode("step", entries))
        self._end_if_drained()

    def _tick(self) -> None:
        if (age_s := self._thread.step_age_s(time.monotonic())) > self._settings.step_timeout_s:
            reason = f"a step has been running for {age_s:.1f} s; [worker] step_timeout allows more"
            self.failed("worker.step_hung", reason, is_final=True)
        if self._engine is not None:
            self._broadcast(frames.encode("stats", self._stats(self._engine)))
        self._loop.call_later(STATS_EVERY_S, self._tick)

    def _stats(self, engine: Engine) -> dict[str, object]:
        if self._sessions is None:
            return asdict(engine.stats)
        self._sessions.watch()
        return {**asdict(engine.stats), "sessions": asdict(self._sessions.counts)}

    def _broadcast(self, frame: bytes) -> None:
        for peer in list(self._peers):
            peer.send(frame)

    def _parent_spoke(self) -> None:
        if not os.read(0, 4096):
            self._end(0)

    def _end_if_drained(self) -> None:
        """Once all is answered and saved, end; but first let every gateway have what was written to it."""
        if not self._is_draining or self._calls:
            return
        if self._sessions is not None and self._flushing is None:
            self._flushing = asyncio.create_task(self._sessions.flush())
            self._flushing.add_done_callback(lambda _: self._end_if_drained())
        elif self._flushing is None or self._flushing.done():
            for peer in self._peers:
                peer.close()
            if not self._peers:
                self._end(0)

    def _end(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)


def _error_of(done: asyncio.Future[Made]) -> BackendError | None:
    exc = done.exception()
    if exc is None or isinstance(exc, BackendError):
        return exc
    log("worker.prepare_failed", error=repr(exc))
    return BackendError("broken", f"the prompt could not be turned into tokens: {exc!r}")


def _warmed(done: asyncio.Future[None]) -> None:
    if (exc := done.exception()) is not None:
        log("worker.warm_failed", error=repr(exc))


def _worker(settings: Settings) -> Worker | EncoderWorker:
    """Make the kind of worker that the source is for; one that cannot be read fails where it is loaded."""
    with suppress(CheckpointError):
        if is_encoder(settings.source):
            return EncoderWorker(settings)
    return Worker(settings)


def main() -> None:
    """Read the settings and serve; ends without waiting for the engine's thread, which may be inside a long step."""
    parser = argparse.ArgumentParser(prog="backends.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the listening unix socket, inherited from the pool")
    fd = parser.parse_args().fd
    settings = settings_of(orjson.loads(sys.stdin.buffer.readline()))

    async def serve() -> int:
        return await _worker(settings).run(socket.socket(fileno=fd))

    os._exit(asyncio.run(serve()))


if __name__ == "__main__":
    main()
