"""The pool: workers that die are restarted, those that cannot start say why, and nothing is left behind."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import BackendError, Delta
from backends.echo import EchoBackend
from gateway.config import WorkerSettings
from gateway.control import process
from gateway.control.pauses import pause_s
from tests.pools import Running, ask, running, small_config

SETTINGS = WorkerSettings(restart_backoff_s=0.5, restart_backoff_max_s=30)


def is_gone(pid: object) -> bool:
    """Whether no such process is left, not even as a zombie."""
    return not Path(f"/proc/{pid}").exists()


async def answers(started: Running, call_id: str, *, tokens: int = 4) -> list[Delta]:
    """Read a whole answer of the first replica."""
    call = ask("Tell me a story.", call_id, ignore_eos=True, max_tokens=tokens)
    return [delta async for delta in started.replica.backend.stream(call)]


async def listen_to(started: Running, call_id: str, begun: asyncio.Barrier) -> None:
    """Read an answer, meeting the others once it has begun."""
    call = ask(f"Tell me story {call_id}.", call_id, ignore_eos=True, max_tokens=500)
    stream = started.replica.backend.stream(call)
    await anext(stream)
    await begun.wait()
    async for _ in stream:
        pass


async def test_a_killed_worker_fails_its_calls_at_once_and_the_next_is_answered(tmp_path: Path) -> None:
    """Eight running streams get a clear error each; the pool starts a new worker on the same socket."""
    async with running(small_config(), tmp_path) as started:
        pid = (await started.event("worker.ready"))["pid"]
        begun = asyncio.Barrier(9)
        streams = [asyncio.create_task(listen_to(started, str(n), begun)) for n in range(8)]
        await begun.wait()

        os.kill(int(str(pid)), signal.SIGKILL)
        errors = await asyncio.gather(*streams, return_exceptions=True)
        await started.event("worker.ready", 2)

        assert [e.kind for e in errors if isinstance(e, BackendError)] == ["broken"] * 8
        assert (await answers(started, "next"))[-1].finish == "length"
        assert is_gone(pid)
        assert (await started.event("worker.died"))["reason"] == "killed by SIGKILL"


async def test_draining_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    """A call that runs is answered whole, a new one is told to go elsewhere, and the worker ends by itself."""
    async with running(small_config(), tmp_path) as started:
        await started.event("worker.ready")
        call = ask("Tell me a story.", "running", ignore_eos=True, max_tokens=20)
        stream = started.replica.backend.stream(call)
        await anext(stream)

        draining = asyncio.create_task(started.pool.drain(30))
        rest = [delta async for delta in stream]
        await draining

        assert rest[-1].finish == "length"
        assert (await started.event("worker.stopped"))["reason"] == "exited with 0"
        with pytest.raises(BackendError) as refused:
            await answers(started, "late")
        assert (refused.value.kind, refused.value.retryable) == ("unreachable", True)


async def test_a_worker_that_cannot_load_says_why_and_is_tried_again(tmp_path: Path) -> None:
    """The reason is told with the file's name; calls meanwhile are refused at once, as another replica may do."""
    async with running(small_config(source="/nowhere/model.gguf"), tmp_path) as started:
        failed = await started.event("worker.failed", 2)

        assert "/nowhere/model.gguf" in str(failed["error"])
        assert not (await started.replica.backend.health()).ready
        with pytest.raises(BackendError) as refused:
            await answers(started, "early")
        assert (refused.value.kind, refused.value.retryable) == ("unreachable", True)


async def test_closing_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    """Even while a worker is still loading."""
    async with running(small_config(), tmp_path) as started:
        await started.event("worker.loading")
        pid = (await started.event("worker.started"))["pid"]

    assert is_gone(pid)
    assert list((tmp_path / "workers").iterdir()) == []


async def test_a_worker_that_is_too_slow_to_start_is_ended(tmp_path: Path) -> None:
    """The reason names the setting that allows more time."""
    async with running(small_config(start_timeout_s=0.05), tmp_path) as started:
        died = await started.event("worker.died")

    assert "start_timeout" in str(died["reason"])


async def test_an_echo_needs_no_process(tmp_path: Path) -> None:
    """Its replica is ready as soon as it is made."""
    async with running(small_config(source="echo"), tmp_path) as started:
        assert isinstance(started.replica.backend, EchoBackend)
        assert (await answers(started, "echo"))[-1].finish
        assert started.told == []


def test_a_socket_left_by_a_killed_gateway_is_replaced(tmp_path: Path) -> None:
    """Nobody listens on it, so it is in nobody's use."""
    path = tmp_path / "workers" / "0.sock"
    process.listen(path).close()

    listener = process.listen(path)

    assert path.parent.stat().st_mode & 0o777 == 0o700
    listener.close()


def test_a_socket_of_a_running_gateway_is_left_alone(tmp_path: Path) -> None:
    """Two gateways with one run_dir: the second says so and does not start."""
    path = tmp_path / "0.sock"

    with process.listen(path), pytest.raises(OSError, match="another gateway"):
        process.listen(path)

    with pytest.raises(OSError, match="run_dir"):
        process.listen(tmp_path / ("x" * 120))


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_double_up_to_a_limit_with_a_spread(deaths: int, spread: float) -> None:
    """Each pause is at most twice the one before and the limit, at least half of that, so that workers part."""
    longest = min(0.5 * 2.0 ** min(deaths - 1, 60), 30)

    assert longest / 2 <= pause_s(deaths, SETTINGS, spread) <= longest
