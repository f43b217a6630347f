"""Another server as a backend: what it says, what it fails to say, and how it fails."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from backends.api import BackendError, Delta
from backends.http import HttpBackend
from tests.pools import ask
from tests.upstreams import STREAM, Line, backend_for, chunk, scripted, status

DONE = b"data: [DONE]\n\n"
HELLO = chunk("hel") + chunk("lo")
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
COUNTED = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'


async def whole(backend: HttpBackend, **fields: object) -> list[Delta]:
    """Read an answer to its end."""
    return [delta async for delta in backend.stream(ask("hi", "id", **fields))]


async def answered(*script: Line, **settings: object) -> list[Delta]:
    """Read what is made of an answer."""
    async with scripted(*script) as upstream, backend_for(upstream.url, **settings) as backend:
        return await whole(backend)


async def failed(*script: Line, **settings: object) -> tuple[BackendError, str]:
    """Read an answer that fails: give the failure, and the text that came before."""
    said: list[str] = []

    async def read(backend: HttpBackend) -> None:
        async for delta in backend.stream(ask("hi", "id")):
            said.append(delta.text)  # noqa: PERF401 (what came before the failure counts)

    async with scripted(*script) as upstream, backend_for(upstream.url, **settings) as backend:
        with pytest.raises(BackendError) as failure:
            await read(backend)
    return failure.value, "".join(said)


async def test_the_question_is_signed_and_names_the_server_s_model() -> None:
    """The server gets its own key, the headers it wants and its own name for the model; usage is always asked for."""
    async with scripted(STREAM, HELLO, chunk(finish="stop"), DONE) as upstream:
        settings = {"model": "big", "api_key": "sk-1", "headers": (("x-team", "search"),)}
        async with backend_for(upstream.url, **settings) as backend:
            await whole(backend)

    path, headers, body = upstream.asked[0]
    assert path == "/v1/chat/completions"
    assert (headers["authorization"], headers["x-team"], headers["x-request-id"]) == ("Bearer sk-1", "search", "id")
    assert (body["model"], body["stream"], body["stream_options"]) == ("big", True, {"include_usage": True})


@pytest.mark.parametrize(
    "script",
    [
        (chunk(finish="stop"), COUNTED, DONE),
        (chunk(finish="stop") + COUNTED + DONE,),
        (chunk(finish="stop", usage=USAGE), DONE),
        (chunk(finish="stop"), COUNTED),
        (COUNTED, chunk(finish="stop"), DONE),
        (COUNTED, DONE),
        (chunk(finish="stop").replace(b": ", b":").replace(b"\n", b"\r\n"), COUNTED, DONE),
        (b": still here\n\n", chunk(finish="eos"), COUNTED, DONE),
        (chunk(finish="stop").replace(b'"index":0,', b""), COUNTED, DONE),
    ],
)
async def test_a_whole_answer_is_whole_however_it_ends(script: tuple[bytes, ...]) -> None:
    """Usage with or after the finish, no end mark, no finish but an end mark, no spaces: nothing is lost by it."""
    deltas = await answered(STREAM, HELLO, *script)

    assert "".join(delta.text for delta in deltas) == "hello"
    assert [delta.finish for delta in deltas if delta.finish] == ["stop"]
    assert deltas[-1].finish
    assert deltas[-1].usage is not None
    assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (5, 2)


async def test_counts_that_are_not_told_are_not_invented() -> None:
    """Without usage, each piece counts as a token, and nothing is said of the prompt."""
    deltas = await answered(STREAM, HELLO, chunk(finish="stop"), DONE)

    assert [delta.usage for delta in deltas] == [None, None, None]
    assert sum(delta.tokens for delta in deltas) == 2


async def test_a_server_that_does_not_stream_is_understood() -> None:
    """A whole body where a stream was asked for is an answer too."""
    choice = {"message": {"content": "hello"}, "finish_reason": "length"}
    (said, end) = await answered(status(200, {"choices": [choice], "usage": USAGE}))

    assert (said.text, end.finish) == ("hello", "length")
    assert end.usage is not None
    assert end.usage.cached_tokens == 4


@pytest.mark.parametrize(
    "script",
    [
        (HELLO,),
        (HELLO, b'data: {"choices": [{"delta": {"con'),
        (HELLO, b"data: nonsense\n\n"),
        (HELLO, b'data: {"error": {"message": "out of memory"}}\n\n', DONE),
        (HELLO, b'event: error\ndata: {"message": "out of memory"}\n\n'),
        (HELLO, chunk(finish="abort"), DONE),
        (HELLO, b"data: " + b"x" * (17 << 20)),
    ],
)
async def test_an_answer_that_breaks_off_never_looks_whole(script: tuple[bytes, ...]) -> None:
    """A clean end of the connection, half an event, garbage, an error, an endless line: all are failures."""
    failure, said = await failed(STREAM, *script)

    assert said == "hello"
    assert (failure.kind, failure.retryable) == ("broken", False)


@pytest.mark.parametrize(
    "script",
    [
        (STREAM,),
        (STREAM, DONE),
        (STREAM, b"data: nonsense\n\n"),
        (STREAM, b'data: {"error": {"message": "out of memory"}}\n\n'),
        (STREAM.replace(b"event-stream", b"html"), b"<p>Hello</p>"),
        (status(200, b"nonsense"),),
        (status(500, {"error": {"message": "out of memory"}}),),
        (status(502, b"<p>nginx</p>"),),
        (status(302, b"", "location: http://127.0.0.1:1/"),),
        (b"garbage\r\n\r\n",),
        (b"",),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n50\r\ndata: ",),
    ],
)
async def test_a_failure_before_the_first_word_may_be_tried_elsewhere(script: tuple[bytes, ...]) -> None:
    """Nothing was said yet, so another replica may say it."""
    failure, said = await failed(*script)

    assert said == ""
    assert (failure.kind, failure.retryable) == ("broken", True)


async def test_a_cut_inside_a_chunk_is_broken() -> None:
    """The framing of HTTP shows that more should have come."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    failure, said = await failed(head + b"%x\r\n%s\r\n" % (len(HELLO), HELLO) + b"50\r\ndata: {")

    assert said == "hello"
    assert (failure.kind, failure.retryable) == ("broken", False)


@pytest.mark.parametrize("code", [429, 503, 529])
async def test_a_server_with_too_much_to_do_says_when_to_come_back(code: int) -> None:
    """Retry-After is handed on."""
    failure, _ = await failed(status(code, {"error": {"message": "busy"}}, "retry-after: 7"))

    assert (failure.kind, failure.retryable, failure.retry_after_s) == ("overloaded", True, 7.0)


async def test_a_call_that_the_server_rejects_is_told_so_in_its_words() -> None:
    """Message, field and code reach the client; nobody tries it again."""
    error = {"message": "top_p is too high", "param": "top_p", "code": "bad_value"}
    failure, _ = await failed(status(422, {"error": error}))

    assert (failure.kind, failure.retryable) == ("rejected", False)
    assert (failure.message, failure.param, failure.code) == ("top_p is too high", "top_p", "bad_value")


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "the request exceeds the available context size",
    ],
)
async def test_a_prompt_too_long_has_one_code_whoever_says_it(said: str) -> None:
    """Agents shorten their prompts when they see it."""
    failure, _ = await failed(status(400, {"error": {"message": said}}))

    assert (failure.kind, failure.code) == ("rejected", "context_length_exceeded")


@pytest.mark.parametrize(("code", "setting"), [(401, "api_key"), (403, "api_key"), (404, "upstream_model")])
async def test_the_operator_s_mistakes_are_no_fault_of_the_client(code: int, setting: str) -> None:
    """What is wrong is named by its setting; what the server says, which may hold the key, is not repeated."""
    failure, _ = await failed(status(code, {"error": {"message": "bad key sk-secret"}}), api_key="sk-secret")

    assert (failure.kind, failure.code) == ("broken", "upstream_not_found" if code == 404 else "upstream_misconfigured")
    assert setting in failure.message
    assert "sk-secret" not in failure.message


async def test_a_server_that_is_busy_says_so_in_the_stream_too() -> None:
    """An error event before the first word is as good as a status."""
    failure, _ = await failed(STREAM, b'data: {"error": {"type": "overloaded_error", "message": "later"}}\n\n')

    assert (failure.kind, failure.retryable) == ("overloaded", True)


@pytest.mark.parametrize(
    ("script", "setting"),
    [((), "first_byte_timeout"), ((STREAM,), "first_byte_timeout"), ((STREAM, HELLO), "idle_timeout")],
)
async def test_silence_has_a_limit_that_is_named(script: tuple[bytes, ...], setting: str) -> None:
    """The operator sees which setting ended the wait."""
    failure, said = await failed(*script, asyncio.Event(), first_byte_timeout_s=0.2, idle_timeout_s=0.2)

    assert (failure.kind, failure.code) == ("broken", "upstream_timeout")
    assert setting in failure.message
    assert failure.retryable == (not said)


async def test_a_client_that_leaves_is_heard_of_by_the_server() -> None:
    """Closing the stream closes the connection at once, so that nothing is computed for nobody."""
    async with scripted(STREAM, HELLO, asyncio.Event()) as upstream, backend_for(upstream.url) as backend:
        async with aclosing(backend.stream(ask("hi", "id"))) as deltas:  # type: ignore[type-var]
            await anext(deltas)

        async with asyncio.timeout(30):
            await upstream.client_left.wait()
    assert (await backend.health()).running == 0


async def test_a_client_that_leaves_before_the_answer_begins_is_heard_of_too() -> None:
    """A prompt that is still being read is given up as well."""
    async with scripted(asyncio.Event()) as upstream, backend_for(upstream.url) as backend:
        asking = asyncio.create_task(whole(backend))
        await upstream.was_asked.wait()
        asking.cancel()

        async with asyncio.timeout(30):
            await upstream.client_left.wait()


async def test_nobody_there_is_found_out_before_a_call_needs_it() -> None:
    """A server that does not answer is down; a call gets an error that may be tried elsewhere."""
    async with scripted() as upstream:
        url = upstream.url
    async with backend_for(url) as backend:
        health = await backend.health()
        with pytest.raises(BackendError) as failure:
            await whole(backend)

    assert (health.ready, health.is_down) == (False, True)
    assert (failure.value.kind, failure.value.retryable) == ("unreachable", True)


async def test_the_model_s_window_is_learnt_from_the_server() -> None:
    """What vLLM and others tell of a model in their list is what clients are told."""
    listed = [{"id": "other", "max_model_len": 1}, {"id": "big", "max_model_len": 4096}]
    async with scripted(models=status(200, {"data": listed})) as upstream:
        async with backend_for(upstream.url, model="big", context_tokens=7) as backend:
            assert (await backend.health()).context_tokens == 4096
        async with backend_for(upstream.url, model="unlisted", context_tokens=7) as backend:
            assert (await backend.health()).context_tokens == 7


@pytest.mark.parametrize(("code", "ready"), [(404, True), (401, True), (429, True), (503, False), (500, False)])
async def test_any_answer_shows_that_a_server_is_there(code: int, *, ready: bool) -> None:
    """Not every server lists its models; only one that fails is down."""
    async with scripted(models=status(code, {})) as upstream, backend_for(upstream.url) as backend:
        assert (await backend.health()).ready == ready


async def test_a_server_that_comes_back_is_found() -> None:
    """One that is down is asked again by itself, and serves as soon as it is there."""
    told: asyncio.Queue[str] = asyncio.Queue()
    async with scripted() as upstream:
        url, port = upstream.url, upstream.port
    async with (
        backend_for(url, told=told) as backend,
        scripted(STREAM, HELLO, chunk(finish="stop"), DONE, port=port),
    ):
        async with asyncio.timeout(30):
            assert await told.get() == "ready"
        deltas = await whole(backend)

    assert deltas[-1].finish == "stop"


async def test_tokens_are_asked_of_the_server() -> None:
    """The exact tokens of a text, in vLLM's words; those that a call has already need no question."""
    async with scripted(status(200, {"tokens": [1, 2]})) as upstream, backend_for(upstream.url) as backend:
        counted = await backend.tokenize(replace(ask("", "id"), prompts=("a b", (3, 4)), messages=()))

    assert counted == [[1, 2], (3, 4)]
    assert [(path, body) for path, _, body in upstream.asked] == [("/tokenize", {"model": "m", "prompt": "a b"})]


async def test_text_is_asked_of_the_server() -> None:
    """What tokens say is known to the server alone."""
    async with scripted(status(200, {"prompt": "a b"})) as upstream, backend_for(upstream.url) as backend:
        assert await backend.detokenize([1, 2]) == "a b"


async def test_anthropic_counts_without_telling_the_tokens() -> None:
    """As many numbers come back as it counts."""
    async with (
        scripted(status(200, {"input_tokens": 3})) as upstream,
        backend_for(upstream.url, dialect="anthropic") as backend,
    ):
        (numbers,) = await backend.tokenize(ask("hi", "id"))

    path, _, body = upstream.asked[0]
    assert len(numbers) == 3
    assert (path, set(body)) == ("/v1/messages/count_tokens", {"model", "messages"})


@pytest.mark.parametrize("answer", [status(404, {}), status(405, {}), status(200, {"tokens": []})])
async def test_a_server_that_cannot_count_is_said_to(answer: bytes) -> None:
    """It is no failure that another try would mend."""
    async with scripted(answer) as upstream, backend_for(upstream.url) as backend:
        with pytest.raises(BackendError, match="cannot tell the tokens") as refused:
            await backend.tokenize(ask("hi", "id"))

    assert (refused.value.kind, refused.value.code) == ("rejected", "unsupported_by_model")
