"""What every backend promises, tried on the echo, on a real worker with the real model, and on another Tidegate."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from backends.api import Backend, BackendError, Call, Delta
from backends.echo import EchoBackend
from gateway.config import Release
from tests.pools import ask, running, small_config
from tests.upstreams import backend_for, gateway_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Subject:
    """A backend, calls that suit it, and how to make it fail while it answers."""

    backend: Backend
    long: Callable[[str], Call]
    failing: Callable[[str], Call]
    fail: Callable[[], Awaitable[None]]
    counts_first: bool = True
    names_fields: bool = True


async def _nothing() -> None:
    """Do nothing: an echo fails by itself."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["echo", "http-openai", "http-anthropic", "local"])
async def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    """Give each backend in turn; a worker is started as the gateway starts it."""
    if request.param == "echo":
        yield Subject(
            EchoBackend("m", context_tokens=1000),
            lambda call_id: ask("echo:repeat=100 word", call_id),
            lambda call_id: ask("echo:error=3 one two three four", call_id),
            _nothing,
        )
        return
    if request.param.startswith("http"):
        dialect = request.param.removeprefix("http-")
        async with (
            gateway_of(tmp_path_factory.mktemp("upstream"), Release(source="echo", context_tokens=1000)) as upstream,
            backend_for(f"http://{upstream.address}/v1", dialect=dialect) as backend,
        ):
            yield Subject(
                backend,
                lambda call_id: ask("echo:repeat=100 word", call_id),
                lambda call_id: ask("echo:error=3 one two three four", call_id),
                _nothing,
                counts_first=dialect == "anthropic",
                names_fields=dialect == "openai",
            )
        return
    folder: Path = tmp_path_factory.mktemp("run")
    async with running(small_config(), folder) as started:
        await started.event("worker.ready")

        async def kill() -> None:
            ready = started.count("worker.ready")
            os.kill(int(str((await started.event("worker.ready", ready))["pid"])), signal.SIGKILL)
            await started.event("worker.ready", ready + 1)

        def long(call_id: str) -> Call:
            return ask("Count.", call_id, ignore_eos=True, max_tokens=90)

        yield Subject(started.replica.backend, long, long, kill)


async def whole(backend: Backend, call: Call) -> list[Delta]:
    """Read an answer to its end."""
    return [delta async for delta in backend.stream(call)]


async def test_an_answer_ends_once_with_exact_usage(subject: Subject) -> None:
    """The last delta has finish and usage, and the usage counts the tokens of all deltas."""
    deltas = await whole(subject.backend, ask("Say hello to the world", "one", max_tokens=3))

    assert [delta.finish for delta in deltas if delta.finish] == ["length"]
    usage = deltas[-1].usage
    assert usage is not None
    assert usage.completion_tokens == sum(delta.tokens for delta in deltas) == 3
    assert "".join(delta.text for delta in deltas)


async def test_the_first_delta_carries_the_prompt_counts(subject: Subject) -> None:
    """Whoever bills or limits by tokens knows the prompt's before the answer is long, where the API can say it."""
    deltas = await whole(subject.backend, ask("Say hello", "counts", max_tokens=2))

    assert deltas[-1].usage is not None
    assert deltas[-1].usage.prompt_tokens > 0
    if subject.counts_first:
        assert deltas[0].usage is not None
        assert deltas[0].usage.prompt_tokens == deltas[-1].usage.prompt_tokens


async def test_closing_the_stream_cancels_the_call(subject: Subject) -> None:
    """A call that was given up is forgotten: its id can be used again at once."""
    async with aclosing(subject.backend.stream(subject.long("again"))) as deltas:  # type: ignore[type-var]
        await anext(deltas)

    assert (await whole(subject.backend, ask("Hello", "again", max_tokens=2)))[-1].finish


async def test_a_prompt_too_long_is_rejected_with_both_numbers(subject: Subject) -> None:
    """An error before the first token comes instead of any delta, and says which field is wrong, where the API can."""
    context = (await subject.backend.health()).context_tokens

    with pytest.raises(BackendError, match=str(context)) as refused:
        await whole(subject.backend, ask("word " * 9000, "long"))

    error = refused.value
    assert (error.kind, error.retryable, error.code, error.param) == (
        "rejected",
        False,
        "context_length_exceeded",
        "messages" if subject.names_fields else None,
    )


async def failure(subject: Subject, call_id: str, said: list[Delta]) -> None:
    """Let a backend fail after the second delta of a call; note what came."""
    async for delta in subject.backend.stream(subject.failing(call_id)):
        said.append(delta)
        if len(said) == 2:
            await subject.fail()


async def test_a_failure_while_answering_is_broken(subject: Subject) -> None:
    """What came before is delivered, then the error comes, which nobody may retry blindly."""
    said: list[Delta] = []

    with pytest.raises(BackendError) as failed:
        await failure(subject, "failing", said)

    assert (failed.value.kind, failed.value.retryable) == ("broken", False)
    assert "".join(delta.text for delta in said)


async def test_after_a_failure_the_next_call_is_answered(subject: Subject) -> None:
    """A failure leaves nothing behind."""
    with pytest.raises(BackendError):
        await failure(subject, "first", [])

    assert (await whole(subject.backend, ask("Hello", "next", max_tokens=2)))[-1].finish


async def test_a_slow_reader_delays_nobody_and_loses_nothing(subject: Subject) -> None:
    """While one reader rests, others are answered; when it reads on, its answer is whole."""
    expected = "".join(delta.text for delta in await whole(subject.backend, subject.long("undisturbed")))

    async with aclosing(subject.backend.stream(subject.long("slow"))) as deltas:  # type: ignore[type-var]
        said = [(await anext(deltas)).text]
        await whole(subject.backend, subject.long("other"))
        said += [delta.text async for delta in deltas]

    assert "".join(said) == expected


async def test_health_is_told_at_once(subject: Subject) -> None:
    """A running backend is ready and says how long a prompt it can take."""
    health = await subject.backend.health()

    assert health.ready
    assert health.context_tokens > 0
