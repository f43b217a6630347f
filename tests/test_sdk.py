"""What users of the real OpenAI SDK see of a real `tidegate serve`, with the echo and with the embedded model."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator

import openai
import pytest

from tests.serving import Served


@pytest.fixture
def client(served_echo: Served) -> Iterator[openai.OpenAI]:
    """Give a client of the echo model that does not retry."""
    with openai.OpenAI(base_url=f"{served_echo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def smol(served_model: Served) -> Iterator[openai.OpenAI]:
    """Give a client of the embedded model."""
    with openai.OpenAI(base_url=f"{served_model.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def said(text: str) -> list[dict[str, str]]:
    """Give a conversation of one message."""
    return [{"role": "user", "content": text}]


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    """A chat completion has its text, finish reason and usage."""
    answer = client.chat.completions.create(model="echo", messages=said("hello there world"))

    assert answer.choices[0].message.content == "hello there world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 6


def test_a_stream_says_role_text_finish_and_usage_in_order(client: openai.OpenAI) -> None:
    """A streamed chat begins with the role, ends with a finish reason, and then the usage that was asked for."""
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="echo", messages=said("a b c"), stream=True, stream_options=options)
    )

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "a b c"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "stop"]
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 3)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 0


def test_the_usage_is_streamed_only_when_asked_for(client: openai.OpenAI) -> None:
    """Without include_usage every chunk has a choice, as clients rely on."""
    chunks = list(client.chat.completions.create(model="echo", messages=said("a"), stream=True))

    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)


async def test_the_async_client_streams(served_echo: Served) -> None:
    """The asynchronous client gets the same stream."""
    async with openai.AsyncOpenAI(base_url=f"{served_echo.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model="echo", messages=said("a b"), stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert "".join(texts) == "a b"


def test_n_choices_come_under_their_indexes(client: openai.OpenAI) -> None:
    """Each of n choices is streamed under its own index and finishes."""
    chunks = list(client.chat.completions.create(model="echo", messages=said("x y"), n=3, stream=True))
    choices = [chunk.choices[0] for chunk in chunks]

    for index in range(3):
        ours = [choice for choice in choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in ours) == "x y"
        assert ours[-1].finish_reason == "stop"


def test_completions_answer_several_prompts(client: openai.OpenAI) -> None:
    """The completions endpoint answers an array of prompts in order, cut at max_tokens."""
    answer = client.completions.create(model="echo", prompt=["a b c", "d"], max_tokens=2)

    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(0, "a b", "length"), (1, "d", "stop")]


def test_models_are_listed_and_found_by_alias(client: openai.OpenAI) -> None:
    """Models and aliases are listed, and retrieved one by one with their window."""
    assert [model.id for model in client.models.list()] == ["echo", "gpt-4o-mini"]
    assert client.models.retrieve("gpt-4o-mini").max_model_len > 0


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "gone"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [*said("x"), {"role": "robot", "content": "y"}]}, openai.BadRequestError, "messages[1].role"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, "response_format.type"),
    ],
)
def test_mistakes_raise_the_sdk_s_own_errors(
    client: openai.OpenAI, change: dict[str, object], error: type[Exception], param: str
) -> None:
    """A mistake raises the SDK's class for its status, naming the field."""
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "echo", "messages": said("x")} | change)

    assert caught.value.param == param
    assert caught.value.request_id


def test_an_image_is_refused_in_words(client: openai.OpenAI) -> None:
    """An image part is refused by its path; nothing pretends to have seen it."""
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]

    with pytest.raises(openai.BadRequestError, match="text only") as caught:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": content}])

    assert caught.value.param == "messages[0].content[1].type"


def test_a_backend_s_refusal_keeps_its_code(client: openai.OpenAI) -> None:
    """What the backend rejects is a 400 with the backend's code."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=said("echo:rejected"))

    assert caught.value.code == "echo_rejected"


@pytest.mark.parametrize("stream", [False, True])
def test_overload_is_a_503_with_retry_after(client: openai.OpenAI, *, stream: bool) -> None:
    """An overloaded backend is a 503 with an integer Retry-After, streamed or not."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="echo", messages=said("echo:overloaded"), stream=stream)

    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"


def test_the_sdk_retries_an_overload(served_echo: Served) -> None:
    """The SDK's own retries come after a 503, under one request id of the client's choice."""
    headers = {"x-request-id": "retried-call"}
    client = openai.OpenAI(base_url=f"{served_echo.url}/v1", api_key="none", max_retries=1)

    with client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="echo", messages=said("echo:overloaded"), extra_headers=headers)

    assert served_echo.event("request", nth=2, request_id="retried-call")["status"] == 503


def test_a_broken_stream_raises_and_does_not_look_whole(client: openai.OpenAI) -> None:
    """A failure after the first token raises in the client instead of ending the stream quietly."""
    stream = client.chat.completions.create(model="echo", messages=said("echo:error=2 a b c"), stream=True)
    texts = []

    with pytest.raises(openai.APIError, match="after 2 words"):
        texts.extend(chunk.choices[0].delta.content for chunk in stream)


def test_the_sdk_s_timeout_frees_the_call(client: openai.OpenAI, served_echo: Served) -> None:
    """A client that gives up is noticed: its call ends as 499 and is no longer open."""
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model="echo", messages=said("echo:stall=1 a b"), extra_headers={"x-request-id": "gave-up"}
        )

    assert served_echo.event("request", request_id="gave-up")["status"] == 499


def test_the_embedded_model_answers(smol: openai.OpenAI) -> None:
    """The real model continues a conversation sensibly and says how many tokens it took."""
    answer = smol.chat.completions.create(
        model="smollm2", messages=said("Why is the sky blue?"), max_tokens=24, temperature=0
    )

    assert "sky" in answer.choices[0].message.content
    assert 0 < answer.usage.completion_tokens <= 24


def test_the_embedded_model_streams_what_it_answers(smol: openai.OpenAI) -> None:
    """Greedy text is the same streamed or whole."""
    asked = {"model": "smollm2", "messages": said("Name three colours."), "max_tokens": 16, "temperature": 0}
    whole = smol.chat.completions.create(**asked).choices[0].message.content

    chunks = list(smol.chat.completions.create(**asked, stream=True))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_the_embedded_model_tells_logprobs(smol: openai.OpenAI) -> None:
    """Logprobs come in OpenAI's shape, with bytes and the alternatives asked for."""
    answer = smol.chat.completions.create(
        model="smollm2", messages=said("Hi"), max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    entries = answer.choices[0].logprobs.content

    assert all(bytes(entry.bytes).decode(errors="replace") == entry.token for entry in entries)
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries)


def test_a_prompt_beyond_the_window_is_refused(smol: openai.OpenAI) -> None:
    """A prompt longer than the model's window is a 400 context_length_exceeded."""
    with pytest.raises(openai.BadRequestError) as caught:
        smol.chat.completions.create(model="smollm2", messages=said("word " * 9000))

    assert caught.value.code == "context_length_exceeded"


async def test_many_streams_share_the_worker(served_model: Served) -> None:
    """32 concurrent streams are all answered, each with the text that it gets alone."""
    async with openai.AsyncOpenAI(base_url=f"{served_model.url}/v1", api_key="none", max_retries=0) as client:

        async def ask(number: int) -> str:
            stream = await client.chat.completions.create(
                model="smollm2", messages=said(f"Count from {number}."), max_tokens=8, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        together = await asyncio.gather(*(ask(number) for number in range(32)))
        alone = [await ask(number) for number in range(0, 32, 8)]

    assert all(together)
    assert together[::8] == alone


def test_a_client_that_goes_away_frees_its_blocks(smol: openai.OpenAI, served_model: Served) -> None:
    """Closing the connection in mid-answer cancels the call in the worker, whose next figures show no block in use."""
    with smol.chat.completions.create(
        model="smollm2", messages=said("Count to a thousand."), stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
        while not blocks_used(served_model):
            pass  # the figures come once a second

    served_model.event("request", status=499)
    while blocks_used(served_model):
        pass  # the answer itself would go on for minutes, to the end of the window


def blocks_used(served: Served) -> float:
    """Read the gauge."""
    with urllib.request.urlopen(f"{served.admin_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tidegate_kv_blocks_used{"))
