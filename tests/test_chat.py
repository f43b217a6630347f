"""The request path: what is retried, what breaks off and how, who is told what, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import cast

import pytest

from backends.api import BackendError, Delta, Replica, Usage
from gateway.dialects.openai import Chat
from gateway.questions import CountTokens
from gateway.settings import TenantSettings
from tests.paths import HELLO, Bench, Paper, Scripted, chat, unreachable


async def test_a_whole_answer_has_length_type_and_request_id() -> None:
    """An answer that isn't streamed is one JSON body under the client's own request id."""
    answer = await Bench(Scripted(*HELLO)).ask(chat(), headers={"x-request-id": "mine-1"})

    assert answer.json["choices"][0]["message"]["content"] == "hello"
    assert answer.answer_headers["content-length"] == str(len(answer.written))
    assert answer.answer_headers["x-request-id"] == "mine-1"


async def test_a_malformed_request_id_is_replaced() -> None:
    """A request id that could break a log line is not echoed."""
    answer = await Bench(Scripted(*HELLO)).ask(chat(), headers={"x-request-id": "a b\n"})

    assert answer.answer_headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unreachable_replica_is_passed_over(*, stream: bool) -> None:
    """Until something is sent, the next replica is tried."""
    first, second = Scripted(unreachable()), Scripted(*HELLO)

    answer = await Bench(first, second).ask(chat(stream=stream))

    assert (answer.status, first.calls, second.calls) == (200, 1, 1)
    assert answer.is_ended


async def test_counts_alone_do_not_bind_a_call_to_a_replica() -> None:
    """A delta that only tells the prompt's counts sends nothing, so the call can still move on."""
    first = Scripted(Delta(usage=Usage(5, 0)), BackendError("broken", "died", retryable=True))

    answer = await Bench(first, Scripted(*HELLO)).ask(chat(stream=True))

    assert answer.written.endswith(b"data: [DONE]\n\n")


async def test_a_whole_answer_starts_over_elsewhere() -> None:
    """Nothing of an answer that isn't streamed has been sent, so it begins again and says nothing twice."""
    first = Scripted(HELLO[0], BackendError("broken", "died", retryable=True))

    answer = await Bench(first, Scripted(*HELLO)).ask(chat())

    assert answer.json["choices"][0]["message"]["content"] == "hello"


async def test_after_the_first_byte_a_failure_is_an_error_event_without_an_end_marker() -> None:
    """A stream that breaks says so, is framed to its end, never says [DONE], and is not tried again."""
    first, second = Scripted(HELLO[0], BackendError("broken", "died", retryable=True)), Scripted(*HELLO)

    answer = await Bench(first, second).ask(chat(stream=True))

    assert b'"error":{"message":"died"' in answer.written
    assert b"[DONE]" not in answer.written
    assert (answer.is_ended, second.calls) == (True, 0)


async def test_an_answer_that_just_stops_is_broken() -> None:
    """A backend that ends without finishing every sequence has failed, whatever it thinks."""
    answer = await Bench(Scripted(HELLO[0])).ask(chat(stream=True))

    assert b"before it was complete" in answer.written
    assert b"[DONE]" not in answer.written


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (BackendError("rejected", "no", code="context_length_exceeded"), 400, None),
        (BackendError("broken", "no"), 502, None),
        (BackendError("overloaded", "no", retryable=True, retry_after_s=0.2), 503, "1"),
        (BackendError("overloaded", "no", retryable=True, retry_after_s=99), 503, "30"),
    ],
)
async def test_a_backend_s_failure_becomes_a_status(error: BackendError, status: int, retry_after: str | None) -> None:
    """Each kind of failure has its status; Retry-After is a whole number of 1 to 30 seconds."""
    answer = await Bench(Scripted(error)).ask(chat())

    assert (answer.status, answer.answer_headers.get("retry-after")) == (status, retry_after)


async def test_what_is_rejected_is_not_tried_elsewhere() -> None:
    """A call that is wrong in itself costs one replica's time only."""
    second = Scripted(*HELLO)

    await Bench(Scripted(BackendError("rejected", "no")), second).ask(chat())

    assert second.calls == 0


async def test_a_failing_fleet_is_asked_three_times_at_most() -> None:
    """One call cannot knock on every door of a fleet that is down."""
    backends = [Scripted(BackendError("overloaded", "full", retryable=True)) for _ in range(8)]

    await Bench(*backends).ask(chat())

    assert sum(backend.calls for backend in backends) == 3


async def test_calls_wait_for_the_first_replica() -> None:
    """A call that comes while the worker starts is answered as soon as it is ready."""
    backend = Scripted(*HELLO, is_ready=False)
    bench = Bench(backend)
    asking = asyncio.create_task(bench.ask(chat()))
    await asyncio.sleep(0)

    backend.is_ready = True
    bench.path.readiness.ring()

    assert (await asking).status == 200


async def test_only_so_many_calls_wait() -> None:
    """Beyond the bound a call is refused at once instead of waiting."""
    answer = await Bench(Scripted(is_ready=False), most=0).ask(chat())

    assert (answer.status, answer.json["error"]["code"]) == (503, "overloaded")


async def test_a_worker_that_comes_back_gets_the_call() -> None:
    """A call that found its only worker dead is given to the one started in its place."""
    backend = Scripted(unreachable())
    bench = Bench(backend)
    asking = asyncio.create_task(bench.ask(chat()))
    await backend.was_asked.wait()

    backend.lines = HELLO
    bench.path.readiness.ring()

    assert (await asking).status == 200


async def test_waiting_calls_are_refused_when_the_gateway_stops() -> None:
    """A stopping gateway keeps nobody waiting, and takes nobody in."""
    bench = Bench(Scripted(is_ready=False))
    asking = asyncio.create_task(bench.ask(chat()))
    await asyncio.sleep(0)

    bench.path.deadlines.end_all()

    assert (await asking).json["error"]["code"] == "stopping"
    assert (await bench.ask(chat())).json["error"]["code"] == "stopping"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_has_a_time_limit(*, stream: bool) -> None:
    """A call longer than request_timeout ends with an error, not a silence, and is cancelled in the backend."""
    backend = Scripted(HELLO[0], asyncio.Event())

    answer = await Bench(backend, limit_s=0.05).ask(chat(stream=stream))

    assert b'"code":"timeout"' in answer.written
    assert (answer.is_ended, backend.open) == (True, 0)


async def test_a_bug_is_a_500_that_can_be_looked_up() -> None:
    """An unforeseen exception is a 500 under the request id, which the log explains with a traceback."""
    bench = Bench(Scripted(RuntimeError("a secret path")))

    answer = await bench.ask(chat(), headers={"x-request-id": "find-me"})

    assert answer.status == 500
    assert b"find-me" in answer.written
    assert b"secret" not in answer.written
    assert "RuntimeError" in str(next(line for line in bench.log if line["event"] == "bug")["traceback"])


async def test_a_client_that_leaves_cancels_its_call() -> None:
    """Cancelling the exchange closes the backend's stream and counts the call as 499."""
    backend = Scripted(HELLO[0], asyncio.Event())
    bench, begun = Bench(backend), asyncio.Event()
    asking = asyncio.create_task(bench.ask(chat(stream=True), on_write=lambda _: begun.set()))
    await begun.wait()

    asking.cancel()
    await asyncio.wait({asking})

    assert (backend.open, bench.path.outstanding["m/stable/0"]) == (0, 0)
    assert bench.count("tidegate_requests_total", model="m", tenant="anonymous", status="499") == 1


async def test_a_write_to_a_client_that_left_ends_the_call() -> None:
    """A write that fails because the client is gone ends the call quietly, too."""

    def gone(_: bytes) -> None:
        raise ConnectionResetError

    bench = Bench(Scripted(*HELLO))

    await bench.ask(chat(stream=True), on_write=gone)

    assert bench.log[-1]["status"] == 499


async def test_the_least_loaded_replica_is_asked() -> None:
    """A second call goes to the replica that has nothing to do."""
    busy, idle = Scripted(HELLO[0], asyncio.Event()), Scripted(*HELLO)
    bench, begun = Bench(busy, idle), asyncio.Event()
    asking = asyncio.create_task(bench.ask(chat(stream=True), on_write=lambda _: begun.set()))
    await begun.wait()

    await bench.ask(chat())
    await bench.ask(chat())
    asking.cancel()
    await asyncio.wait({asking})

    assert (busy.calls, idle.calls) == (1, 2)


async def test_a_prompt_is_stabilised_for_the_replicas_that_want_it_alone() -> None:
    """What another server gets, in whatever dialect, is what the client has sent."""
    ours, theirs = Scripted(BackendError("unreachable", "gone", retryable=True)), Scripted(*HELLO)
    bench = Bench(ours, theirs)
    replicas = cast("list[Replica]", bench.path.replicas())
    replicas[0] = replace(replicas[0], stabilises=True)
    lines = ["It is now 10:04.", "Be brief."]

    await bench.ask(chat(messages=[{"role": "system", "content": "\n".join(lines)}, {"role": "user", "content": "a"}]))

    assert ours.asked is not None
    assert theirs.asked is not None
    assert ours.asked.messages[0].text == "\n".join(reversed(lines))
    assert theirs.asked.messages[0].text == "\n".join(lines)
    assert ours.asked.body == theirs.asked.body


async def test_a_foreign_model_does_not_exist() -> None:
    """A tenant sees only its models: another one's is a 404, like one that isn't there."""
    key_hash = "sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"
    bench = Bench(Scripted(*HELLO), tenants=[TenantSettings(name="t", keys=(key_hash,), models=("other",))])

    answer = await bench.ask(chat(), headers={"authorization": "Bearer key"})

    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


async def test_a_call_is_counted_and_logged_without_its_text() -> None:
    """Metrics and the access line tell model, tenant, tokens and times, and nothing that was said."""
    bench = Bench(Scripted(*HELLO))

    await bench.ask(chat(stream=True, messages=[{"role": "user", "content": "my secret"}]))

    assert bench.count("tidegate_prompt_tokens_total", model="m", tenant="anonymous") == 5
    assert bench.count("tidegate_cached_tokens_total", model="m", tenant="anonymous") == 4
    assert bench.count("tidegate_ttft_seconds_count", model="m", tenant="anonymous") == 1
    assert bench.count("tidegate_open_streams") == 0
    line = bench.log[-1]
    assert (line["event"], line["status"], line["model"], line["tokens"]) == ("request", 200, "m", 2)
    assert "secret" not in bench.lines.getvalue()
    assert "hello" not in bench.lines.getvalue()


async def test_unknown_models_are_no_labels() -> None:
    """Names that clients make up never become labels of a metric."""
    bench = Bench(Scripted(*HELLO))

    await bench.ask(chat(model="made-up"))

    assert b"made-up" not in bench.path.metrics.text()


async def test_headers_are_held_back_until_there_is_something_to_say() -> None:
    """A stream's status is sent with its first words, so that a failure before them still has its own."""
    backend, paper = Scripted(Delta(usage=Usage(5, 0)), asyncio.Event()), Paper(chat(stream=True))
    asking = asyncio.create_task(Bench(backend).path.handle(Chat(), paper))
    await backend.was_asked.wait()

    assert paper.status == 0
    asking.cancel()
    await asyncio.wait({asking})


@pytest.mark.parametrize(
    ("headers", "fields", "session"),
    [
        ({"x-session-id": "s1"}, {"prompt_cache_key": "s2"}, "s1"),
        ({"x-client-request-id": "r1"}, {"user": "s3"}, "s3"),
        ({"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}, {}, None),
    ],
)
async def test_a_call_knows_its_session(headers: dict[str, str], fields: dict[str, str], session: str | None) -> None:
    """The session that headers or body name reaches the backend; ids of single requests name none."""
    backend = Scripted(*HELLO)
    await Bench(backend).ask(chat(**fields), headers=headers)

    assert backend.asked is not None
    assert backend.asked.session == session


@pytest.mark.parametrize(
    ("sent", "passed_on"), [("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True), ("a\r\nb: c", False)]
)
async def test_a_trace_is_passed_on(sent: str, *, passed_on: bool) -> None:
    """A well-formed traceparent reaches the backend as it was sent, and nothing else does."""
    backend = Scripted(*HELLO)
    await Bench(backend).ask(chat(), headers={"traceparent": sent})

    assert backend.asked is not None
    assert backend.asked.traceparent == (sent if passed_on else None)


async def test_a_question_is_put_to_another_replica_when_one_is_gone() -> None:
    """What is asked about tokens is tried elsewhere like a call, and counted like one."""
    bench = Bench(Scripted(unreachable()), Scripted())
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    answer = Paper(body, path="/v1/messages/count_tokens")

    await bench.path.ask(CountTokens(), answer)

    assert answer.json == {"input_tokens": 3}
    assert bench.count("tidegate_requests_total", model="m", tenant="anonymous", status="200") == 1
