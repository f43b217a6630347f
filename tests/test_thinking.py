"""What a model thought, as users of the real SDKs see it: of an echo that thinks, and of a worker that cannot stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from backends.api import Call, Delta
from gateway.dialects.anthropic import Messages
from gateway.refusal import Refusal
from tests.paths import HELLO, Bench, Paper, Scripted, chat
from tests.serving import Served, serving
from tests.test_thoughts import R1
from tests.tiny_checkpoint import write_tiny

THINKING = {"type": "enabled", "budget_tokens": 1024}
ASKED = [{"role": "user", "content": "echo:think=2 one two three"}]
MODEL = '[[models]]\nname = "tiny"\nreleases = [{{ source = "{folder}" }}]\n'


@pytest.fixture
def openai_sdk(served_echo: Served) -> Iterator[openai.OpenAI]:
    """Give OpenAI's client of the echo model."""
    with openai.OpenAI(base_url=f"{served_echo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_sdk(served_echo: Served) -> Iterator[anthropic.Anthropic]:
    """Give Anthropic's client of the echo model."""
    with anthropic.Anthropic(base_url=served_echo.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_has_them_beside_its_content(openai_sdk: openai.OpenAI) -> None:
    """`reasoning_content` holds them, streamed and whole, as clients of vLLM and DeepSeek read it."""
    whole = openai_sdk.chat.completions.create(model="echo", messages=ASKED).choices[0].message
    chunks = list(openai_sdk.chat.completions.create(model="echo", messages=ASKED, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]

    assert (whole.reasoning_content, whole.content) == ("one two", "three")
    assert [getattr(delta, "reasoning_content", None) for delta in deltas] == [None, "one", " two", None, None]
    assert "".join(delta.content or "" for delta in deltas) == "three"


def test_a_message_that_asks_for_them_has_a_block(anthropic_sdk: anthropic.Anthropic) -> None:
    """The SDK gathers a thinking block with a signature before the text, and reads the same from a whole message."""
    asked = {"model": "echo", "messages": ASKED, "max_tokens": 2048, "thinking": THINKING}
    with anthropic_sdk.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    whole = anthropic_sdk.messages.create(**asked)

    for message in (streamed, whole):
        thought, said = message.content
        assert (thought.type, thought.thinking, said.type, said.text) == ("thinking", "one two", "text", "three")
        assert thought.signature
        assert message.usage.output_tokens == 3
    assert {"thinking", "signature"} <= set(kinds)


@pytest.mark.parametrize(
    ("thinking", "said"),
    [
        (None, "three"),
        ({"type": "adaptive", "display": "omitted"}, "three"),
        ({"type": "disabled"}, "one two three"),
    ],
)
def test_a_message_that_does_not_ask_has_none(
    anthropic_sdk: anthropic.Anthropic, thinking: dict[str, str] | None, said: str
) -> None:
    """Thoughts are left out, streamed and whole; who asks not to think gets an answer without any."""
    fields = {"thinking": thinking} if thinking else {}
    asked = {"model": "echo", "messages": ASKED, "max_tokens": 99} | fields
    with anthropic_sdk.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    whole = anthropic_sdk.messages.create(**asked)

    assert [[block.text for block in message.content] for message in (streamed, whole)] == [[said], [said]]


def test_a_response_has_an_item_of_them(openai_sdk: openai.OpenAI) -> None:
    """A reasoning item comes before the message, streamed and in the end, and its tokens are told."""
    with openai_sdk.responses.stream(model="echo", input=ASKED[0]["content"]) as stream:
        events = list(stream)
        response = stream.get_final_response()
    reasoning, message = response.output

    assert (reasoning.type, reasoning.content[0].text, message.content[0].text) == ("reasoning", "one two", "three")
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert deltas == ["one", " two"]


def test_a_response_with_thoughts_can_be_continued(openai_sdk: openai.OpenAI) -> None:
    """Thoughts are no part of what the next call is told, by its id, by reference or by their items."""
    first = openai_sdk.responses.create(model="echo", input=ASKED[0]["content"])
    reasoning, message = (item.to_dict() for item in first.output)
    follow = {"role": "user", "content": "more"}

    by_id = openai_sdk.responses.create(model="echo", input=[follow], previous_response_id=first.id)
    by_items = openai_sdk.responses.create(model="echo", input=[*ASKED, reasoning, message, follow])
    references = [{"type": "item_reference", "id": item["id"]} for item in (reasoning, message)]
    by_reference = openai_sdk.responses.create(model="echo", input=[*ASKED, *references, follow])

    assert {each.usage.input_tokens for each in (by_id, by_items, by_reference)} == {6}


@pytest.mark.parametrize(
    "fields", [{"reasoning_effort": "none"}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}]
)
def test_a_chat_can_ask_not_to_think(openai_sdk: openai.OpenAI, fields: dict[str, object]) -> None:
    """OpenAI's field and vLLM's are the same wish."""
    answer = openai_sdk.chat.completions.create(model="echo", messages=ASKED, **fields)

    assert answer.choices[0].message.content == "one two three"


def test_a_wrong_wish_is_named_by_its_path() -> None:
    """Anthropic's field is an object with one of its types."""
    body = {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "thinking": {"type": "hard"},
    }

    with pytest.raises(Refusal) as caught:
        Messages().parse(json.dumps(body).encode(), call_id="c", tenant="t")

    assert caught.value.param == "thinking.type"


def test_the_signature_of_another_server_is_handed_on() -> None:
    """A server that signs its thoughts gets its own signature back; what follows it begins another block."""
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "thinking": THINKING}
    call = Messages().parse(json.dumps(body).encode(), call_id="c", tenant="t")
    deltas = [Delta(reasoning="hm"), Delta(signature="s1"), Delta(reasoning="so"), Delta(text="x", finish="stop")]
    blocks = json.loads(Messages().answer(call, now=0.0).whole(deltas))["content"]
    streamed = b"".join(map(Messages().answer(call, now=0.0).chunk, deltas))

    assert [block.get("signature") for block in blocks] == ["s1", "tidegate-c", None]
    assert streamed.count(b"content_block_start") == 2 * 3
    assert streamed.index(b'"s1"') < streamed.index(b'"so"') < streamed.index(b'"tidegate-c"')


class Brooding(Scripted):
    """A backend that thinks until its client was pinged."""

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        """Think, then say the lines."""
        pinged = self.lines[0]
        assert isinstance(pinged, asyncio.Event)
        while not pinged.is_set():
            yield Delta(reasoning="hm", tokens=1)
            await asyncio.sleep(0)
        async for delta in super().stream(call):
            yield delta


async def test_thoughts_that_are_left_out_are_a_silence_with_pings() -> None:
    """A client that does not see them hears that the answer goes on."""
    pinged = asyncio.Event()
    ping = Messages.ping
    bench = Bench(Brooding(pinged, *HELLO), ping_interval_s=0.001)
    answer = Paper(chat(stream=True, max_tokens=9), on_write=lambda said: pinged.set() if said == ping else None)

    await bench.path.handle(Messages(), answer)

    assert b"hel" in answer.written
    assert b"hm" not in answer.written


def test_a_worker_tells_what_its_model_thinks(tmp_path: Path) -> None:
    """A model whose template opens thoughts only thinks, as it never closes them; told not to, it answers at once."""
    folder = write_tiny(tmp_path / "tiny")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": R1}))
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "temperature": 0}
    plain = {"chat_template_kwargs": {"enable_thinking": False}}
    with (
        serving(tmp_path, models=MODEL.format(folder=folder)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        thought = client.chat.completions.create(**asked).choices[0]
        said = client.chat.completions.create(**asked, extra_body=plain).choices[0]

    assert (thought.message.content, thought.finish_reason) == ("", "length")
    assert thought.message.reasoning_content
    assert said.message.content
    assert not hasattr(said.message, "reasoning_content")
