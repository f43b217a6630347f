"""What a call becomes for a server that speaks another API than its client."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backends.anthropic_upstream import AnthropicUpstream
from backends.api import BackendError, Call, Message, ResponseFormat, Sampling, Tool, ToolCall, ToolChoice
from backends.openai_upstream import OpenAIUpstream
from gateway.dialects.anthropic import Messages
from gateway.dialects.openai import Chat, Completions

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = Tool("weather", "Tells it.", SCHEMA, strict=True)
TURNS = (
    Message("system", "Be brief."),
    Message("user", "Weather?"),
    Message("assistant", "", tool_calls=(ToolCall("t1", "weather", '{"city":"Rome"}'),)),
    Message("tool", "sunny", tool_call_id="t1"),
    Message("user", "And now?"),
)
CALL = Call("id", "m", TURNS, tools=(TOOL,), max_tokens=9, stop=("END",), sampling=Sampling(temperature=0.5))


def openai(call: Call) -> dict[str, object]:
    """Write a call for an OpenAI-compatible server, as it would read it."""
    return json.loads(json.dumps(OpenAIUpstream().post(call, "big").body))


def anthropic(call: Call) -> dict[str, object]:
    """Write a call for an Anthropic-compatible server, as it would read it."""
    return json.loads(json.dumps(AnthropicUpstream().post(call, "big").body))


def test_a_call_in_openai_s_words_is_read_back_as_it_was() -> None:
    """Everything that was understood is in the body: our own dialect reads the same call from it."""
    call = replace(
        CALL,
        sampling=Sampling(0.5, 0.9, 3, 0.1, 0.2, 0.3, 1.1, 7, ((5, -1.0),)),
        min_tokens=2,
        ignore_eos=True,
        choices=2,
        logprobs=3,
        tool_choice=ToolChoice("required", "weather"),
        parallel_tool_calls=False,
        response_format=ResponseFormat("json_schema", schema=SCHEMA, strict=True),
    )

    read = Chat().parse(json.dumps(openai(call)).encode(), call_id="id", tenant="anonymous")

    assert replace(read, dialect="", body={}, include_usage=False, stream=False, model="m") == call


def test_thoughts_of_another_model_are_kept_from_a_server_that_signs_its_own() -> None:
    """A conversation may go on there that began with a worker; everything else is passed on as it was sent."""
    own, foreign = ({"type": "thinking", "thinking": "hm", "signature": name} for name in ("s1", "tidegate-c1"))
    said = {"type": "text", "text": "Hi."}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [foreign, said]},
        {"role": "assistant", "content": [own, said]},
        {"role": "assistant", "content": [foreign]},
        {"role": "user", "content": [said]},
    ]
    body = {"model": "m", "max_tokens": 9, "messages": turns, "unknown": 1}

    passed = anthropic(Messages().parse(json.dumps(body).encode(), call_id="id", tenant="anonymous"))

    kept = [turns[0], {"role": "assistant", "content": [said]}, turns[2], turns[4]]
    assert passed == body | {"model": "big", "stream": True, "messages": kept}


def test_prompts_in_openai_s_words_are_read_back_as_they_were() -> None:
    """Texts and token ids alike."""
    call = Call("id", "m", prompts=("a", (1, 2)), max_tokens=9, logprobs=2)

    post = OpenAIUpstream().post(call, "big")
    read = Completions().parse(json.dumps(post.body).encode(), call_id="id", tenant="anonymous")

    assert post.path == "/completions"
    assert replace(read, dialect="", body={}, include_usage=False, stream=False, model="m") == call


def test_a_call_in_anthropic_s_words_is_read_back_as_it_was() -> None:
    """Everything that this API can say is in the body."""
    call = replace(
        CALL,
        sampling=Sampling(temperature=0.5, top_p=0.9, top_k=3),
        tool_choice=ToolChoice("required", "weather"),
        parallel_tool_calls=False,
        response_format=ResponseFormat("json_schema", schema=SCHEMA),
    )

    read = Messages().parse(json.dumps(anthropic(call)).encode(), call_id="id", tenant="anonymous")

    assert replace(read, dialect="", body={}, stream=False, model="m") == call


def test_what_is_at_its_default_is_left_to_the_server() -> None:
    """Many servers refuse what they do not know, even where it would change nothing."""
    call = Call("id", "m", (Message("user", "hi"),))

    assert set(openai(call)) == {"messages", "model", "stream", "stream_options"}
    assert set(anthropic(call)) == {"messages", "model", "stream", "max_tokens"}


def test_neighbouring_turns_become_one_message() -> None:
    """The results of tools and what the user says after them are one turn of the user for Anthropic."""
    messages = anthropic(CALL)["messages"]

    assert [(each["role"], [block["type"] for block in each["content"]]) for each in messages] == [
        ("user", ["text"]),
        ("assistant", ["tool_use"]),
        ("user", ["tool_result", "text"]),
    ]


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("prompt", {"prompts": ("a",), "messages": ()}),
        ("n", {"choices": 2}),
        ("logprobs", {"logprobs": 0}),
        ("min_tokens", {"min_tokens": 1}),
        ("ignore_eos", {"ignore_eos": True}),
        ("response_format", {"response_format": ResponseFormat("json_object")}),
        ("presence_penalty", {"sampling": Sampling(presence_penalty=0.1)}),
        ("frequency_penalty", {"sampling": Sampling(frequency_penalty=0.1)}),
        ("repetition_penalty", {"sampling": Sampling(repetition_penalty=1.1)}),
        ("min_p", {"sampling": Sampling(min_p=0.1)}),
        ("logit_bias", {"sampling": Sampling(logit_bias=((1, 1.0),))}),
        ("temperature", {"sampling": Sampling(temperature=1.5)}),
        ("messages", {"messages": (Message("assistant", tool_calls=(ToolCall("t", "w", "{"),)),)}),
    ],
)
def test_what_anthropic_cannot_be_asked_is_refused(param: str, asked: dict[str, object]) -> None:
    """To leave it out would be to answer another question than was asked; the field is named."""
    with pytest.raises(BackendError) as refused:
        anthropic(replace(CALL, **asked))

    assert (refused.value.kind, refused.value.code, refused.value.param) == ("rejected", "unsupported_value", param)
    assert refused.value.message.startswith(param)


def test_a_call_of_the_same_api_is_passed_on_as_it_was_sent() -> None:
    """Only what must be is changed; what we do not understand stays."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream_options": {"x": 1}, "y": 2}
    chat = Chat().parse(json.dumps(body).encode(), call_id="id", tenant="t")
    message = Messages().parse(json.dumps({**body, "max_tokens": 3}).encode(), call_id="id", tenant="t")

    asked = {"model": "big", "stream": True}
    assert openai(chat) == {**body, **asked, "stream_options": {"x": 1, "include_usage": True}}
    assert anthropic(message) == {**body, **asked, "max_tokens": 3}
