"""The worker process, spoken to in raw frames: whoever speaks nonsense is dropped, whoever leaves is forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Literal

import pytest

from backends import frames
from backends.api import BackendError
from backends.engine import Engine, Event, loading
from backends.engine.loading import Choice, choose
from backends.engine.planning import KvPlan, RunnerChoice, Settings, plan_kv
from backends.engine.problems import CheckpointError
from backends.engine.thread import EngineThread
from gateway.config import WorkerSettings
from gateway.control import process
from gateway.control.pool import worker_settings
from tests.pools import PATIENCE_S, ask, running, small_config
from tests.toy_model import CONTEXT, SPEC, toy_call, toy_engine

TOKEN_BYTES = SPEC.kv_bytes_per_token


class Wire:
    """One connection to a worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._frames = frames.FrameReader(frames.ANSWER_LIMIT_BYTES)
        self._unread: list[frames.Frame] = []

    def send(self, *frame: object) -> None:
        """Send a frame."""
        self.writer.write(frames.encode(*frame))

    async def next(self, tag: str) -> frames.Frame:
        """Skip to the next frame with a tag; EOFError when the worker hangs up before."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self._unread:
                    if (frame := self._unread.pop(0))[0] == tag:
                        return frame
                if not (received := await self._reader.read(1 << 16)):
                    raise EOFError
                self._unread += self._frames.feed(received)


@asynccontextmanager
async def spawned(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """Start a worker with the real model, as the pool does."""
    config = small_config()
    path = folder / "worker.sock"
    with process.listen(path) as listener:
        told = worker_settings(config, config.models[0], config.models[0].releases[0])
        worker = await process.spawn(listener, told)
        try:
            yield worker, path
        finally:
            await process.stop(worker)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Wire]:
    """Connect to a worker."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


async def test_a_worker_ends_with_its_standard_input(tmp_path: Path) -> None:
    """When its gateway dies, however that happens, the worker dies too, even while it loads."""
    async with spawned(tmp_path) as (worker, _):
        assert worker.stdin
        await worker.stdin.drain()
        worker.stdin.close()

        async with asyncio.timeout(PATIENCE_S):
            assert await worker.wait() == 0


async def test_nonsense_ends_its_connection_and_nothing_else(tmp_path: Path) -> None:
    """A peer that breaks the protocol is dropped; others are answered."""
    async with spawned(tmp_path) as (_, path), connected(path) as good, connected(path) as bad:
        await good.next("hello")
        bad.send("surprise", 1)
        with pytest.raises(EOFError):
            await bad.next("never")

        good.send("tokenize", 1, frames.pack_call(ask("Hello", "t")))
        _, number, (tokens,) = await good.next("told")

    assert number == 1
    assert len(tokens) > 1


async def test_a_peer_that_leaves_frees_its_blocks(tmp_path: Path) -> None:
    """Its calls are cancelled; the next figures say that no block is in use."""
    async with spawned(tmp_path) as (_, path), connected(path) as staying:
        await staying.next("hello")
        async with connected(path) as leaving:
            leaving.send("submit", frames.pack_call(ask("Hello", "gone", ignore_eos=True, max_tokens=1000)))
            await leaving.next("step")
            while await blocks_used(staying) == 0:
                pass  # figures from before the call still wait to be read

        async with asyncio.timeout(PATIENCE_S):
            while used := await blocks_used(staying):
                pass

    assert used == 0


async def blocks_used(wire: Wire) -> int:
    """Read the next figures."""
    return int((await wire.next("stats"))[1]["kv_blocks_used"])


async def test_a_step_is_one_frame_for_all_calls(tmp_path: Path) -> None:
    """Calls that are computed together are told together."""
    async with spawned(tmp_path) as (_, path), connected(path) as wire:
        await wire.next("hello")
        for number in range(4):
            wire.send("submit", frames.pack_call(ask("Hello", str(number), ignore_eos=True, max_tokens=12)))

        steps: list[list[object]] = []
        while sum(entry[4] is not None for step in steps for entry in step) < 4:  # type: ignore[index]
            steps.append((await wire.next("step"))[1])

    assert max(map(len, steps)) == 4


async def test_a_native_worker_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """Its process maps our library, and nothing of torch; what it chose is told."""
    config = replace(small_config(), worker=WorkerSettings(runner="native"))
    async with running(config, tmp_path) as started:
        maps = mapped((await started.event("worker.ready"))["pid"])
        told = await started.event("worker.runner")

    assert "tidegate-cpu-" in maps
    assert [line for line in maps.splitlines() if "torch" in line or "transformers" in line] == []
    assert (told["runner"], told["reason"]) == ("native", "")


@pytest.mark.parametrize("form", ["native", "torch"])
async def test_both_forms_answer_through_a_worker(tmp_path: Path, form: Literal["native", "torch"]) -> None:
    """Whichever computes, the same call gets an answer that makes sense."""
    config = replace(small_config(), worker=WorkerSettings(runner=form))
    async with running(config, tmp_path) as started:
        await started.event("worker.ready")
        call = ask("Why is the sky blue?", "c", max_tokens=24)

        text = "".join([delta.text async for delta in started.replica.backend.stream(call)])

    assert "sky" in text  # no near tie decides that, as it does between "The" and "L'" of France


async def test_a_worker_that_hangs_in_a_step_is_started_again(tmp_path: Path) -> None:
    """A step of 8,000 tokens stands for one that never ends: its call gets an error, the next is answered."""
    config = small_config(step_timeout_s=1.0, runner="native")
    config = replace(config, batching=replace(config.batching, token_budget=8192, kv_memory_bytes=256 << 20))
    async with running(config, tmp_path) as started:
        await started.event("worker.ready")
        backend = started.replica.backend

        with pytest.raises(BackendError, match="worker was lost"):
            _ = [delta async for delta in backend.stream(ask("word " * 8000, "long", max_tokens=1))]
        hung = await started.event("worker.step_hung")
        await started.event("worker.ready", 2)
        text = "".join([delta.text async for delta in backend.stream(ask("Why is the sky blue?", "c", max_tokens=9))])

    assert "step_timeout" in str(hung["error"])
    assert text


def mapped(pid: object) -> str:
    """List what a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize(
    ("form", "missing", "has_torch", "chosen"),
    [
        ("auto", None, True, Choice("native")),
        ("native", None, True, Choice("native")),
        ("torch", None, True, Choice("torch")),
        ("auto", "no library", True, Choice("torch", "no library")),
    ],
)
def test_the_library_computes_wherever_it_is_there(monkeypatch, form, missing, has_torch, chosen) -> None:
    """Torch is what remains, with the reason; asking for one form gets that form."""
    machine(monkeypatch, missing, has_torch=has_torch)

    assert choose(settings(kv_blocks=8, runner=form)) == chosen


@pytest.mark.parametrize(
    ("form", "has_torch", "words"),
    [
        ("native", True, r'runner is "native", but no library'),
        ("auto", False, "no library; and torch is not installed: pip install"),
        ("torch", False, "nothing here can compute: torch is not installed"),
    ],
)
def test_a_machine_that_cannot_compute_says_what_to_install(monkeypatch, form, has_torch, words) -> None:
    """The error names what is missing and the command that brings it."""
    machine(monkeypatch, "no library", has_torch=has_torch)

    with pytest.raises(CheckpointError, match=words):
        choose(settings(kv_blocks=8, runner=form))


def machine(monkeypatch: pytest.MonkeyPatch, missing: str | None, *, has_torch: bool) -> None:
    """Let this machine have the library and torch, or not."""
    monkeypatch.setattr(loading.cpu, "native_missing", lambda: missing)
    monkeypatch.setattr(loading, "find_spec", lambda _: object() if has_torch else None)


def settings(*, context_tokens: int = 0, kv_blocks: int, runner: RunnerChoice = "auto") -> Settings:
    """Make settings with memory for so many blocks of 8 tokens of the toy model."""
    return Settings(
        model="toy",
        source="",
        context_tokens=context_tokens,
        runner=runner,
        max_batch=8,
        token_budget=32,
        block_tokens=8,
        kv_memory_bytes=kv_blocks * 8 * TOKEN_BYTES,
        max_waiting=8,
    )


def test_memory_becomes_blocks() -> None:
    """As many whole blocks as fit, and the model's own context when one such sequence fits."""
    assert plan_kv(SPEC, settings(kv_blocks=10), token_bytes=TOKEN_BYTES) == KvPlan(10, CONTEXT)


def test_a_context_nobody_asked_for_shrinks_to_the_memory() -> None:
    """One sequence always fits whole, so that the oldest never waits for ever."""
    assert plan_kv(SPEC, settings(kv_blocks=4), token_bytes=TOKEN_BYTES) == KvPlan(4, 32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (settings(context_tokens=40, kv_blocks=4), "kv_memory"),
        (settings(kv_blocks=1), "kv_memory"),
        (settings(context_tokens=CONTEXT + 1, kv_blocks=100), "more than the model's own 48"),
    ],
)
def test_a_context_that_cannot_be_is_refused(asked: Settings, message: str) -> None:
    """The error names both settings that can be changed."""
    with pytest.raises(CheckpointError, match=message):
        plan_kv(SPEC, asked, token_bytes=TOKEN_BYTES)


class Heard:
    """A listener that keeps what it is told, for another thread to wait for."""

    def __init__(self) -> None:
        self.events: Queue[Event] = Queue()
        self.failures: list[tuple[str, bool]] = []
        self.steps = 0

    def loaded(self, engine: Engine) -> None:
        """Nothing to do."""

    def told(self, events: list[Event]) -> None:
        """Keep the events, and how often there were some."""
        self.steps += 1
        for event in events:
            self.events.put(event)

    def failed(self, event: str, reason: str, *, is_final: bool) -> None:
        """Keep the failure."""
        del reason
        self.failures.append((event, is_final))


def test_an_order_that_fails_ends_its_call_and_not_the_engine() -> None:
    """A bug in taking one call is an error of that call; the thread goes on and takes the next."""
    heard = Heard()
    thread = EngineThread(toy_engine, heard)
    thread.start()

    thread.order("bad", lambda engine, _: engine.nonsense())  # type: ignore[attr-defined]
    broken = heard.events.get(timeout=PATIENCE_S)
    thread.order(
        "good", lambda engine, now: engine.submit(engine.prepare(toy_call("hello", "good", max_tokens=1)), now)
    )
    answered = heard.events.get(timeout=PATIENCE_S)

    assert broken[0] == "bad"
    assert isinstance(broken[1], BackendError)
    assert heard.failures == [("worker.order_failed", False)]
    assert answered[0] == "good"


def test_an_idle_engine_waits_for_company_before_its_first_step() -> None:
    """Within the window nothing is computed; then those who came are computed in one step."""
    heard, taken = Heard(), threading.Event()
    thread = EngineThread(toy_engine, heard, window_s=1.0)
    thread.start()

    def submit(name: str) -> None:
        call = toy_call("hello", name, max_tokens=1)
        thread.order(name, lambda engine, now: (engine.submit(engine.prepare(call), now), taken.set()))  # type: ignore[arg-type, return-value]

    submit("first")
    was_alone = taken.wait(0.1)
    submit("second")

    assert not was_alone
    assert {heard.events.get(timeout=PATIENCE_S)[0] for _ in range(2)} == {"first", "second"}
    assert heard.steps == 1
