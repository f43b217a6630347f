"""OpenAI's chat and completions: what bodies mean, how mistakes are named, and what bytes answers become."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, Delta, TokenLogprob, ToolCallDelta, Usage
from gateway.dialects.openai import Chat, Completions, error
from gateway.refusal import Refusal

HI = [{"role": "user", "content": "hi"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = """model messages prompt temperature top_p top_k n stop seed logprobs top_logprobs stream stream_options tools
max_tokens logit_bias response_format echo suffix best_of tool_choice min_tokens user store"""
FIELDS = st.sampled_from(NAMES.split())


def parse(dialect: Chat | Completions | None = None, **fields: object) -> Call:
    """Read a body; chat and a small message unless told otherwise."""
    body = {"model": "m", "messages": HI, "prompt": "hi"} | fields
    return (dialect or Chat()).parse(json.dumps(body).encode(), call_id="c1", tenant="t")


def events(stream: bytes) -> list[dict[str, object]]:
    """Read the JSON events of a stream."""
    return [json.loads(event[6:]) for event in stream.decode().split("\n\n") if event.startswith("data: {")]


def test_what_is_not_said_has_its_default() -> None:
    """A minimal chat samples at temperature 1 without limits; null means the same as absent."""
    nulls = dict.fromkeys(("temperature", "stop", "seed", "max_tokens", "stream", "logprobs", "n", "stream_options"))

    assert parse() == parse(**nulls)
    assert (parse().sampling.temperature, parse().max_tokens, parse().choices) == (1.0, None, 1)


def test_every_field_arrives() -> None:
    """Sampling, limits and stops of a body are those of its call; what isn't known is kept for external servers."""
    call = parse(
        temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, seed=7, stop="x", n=2, max_completion_tokens=9, max_tokens=3,
        min_tokens=2, ignore_eos=True, presence_penalty=1, logit_bias={"42": -100}, logprobs=True, top_logprobs=5,
        store=True,
    )  # fmt: skip

    assert (call.sampling.temperature, call.sampling.top_k, call.sampling.seed) == (0.5, 0, 7)
    assert (call.sampling.logit_bias, call.sampling.presence_penalty) == (((42, -100.0),), 1.0)
    assert (call.max_tokens, call.min_tokens, call.ignore_eos, call.stop) == (9, 2, True, ("x",))
    assert (call.choices, call.logprobs, call.body["store"]) == (2, 5, True)


def test_messages_of_every_role_are_read() -> None:
    """Parts are joined, null content with tool calls is fine, and tool results carry their id."""
    made = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    call = parse(
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [made]},
            {"role": "tool", "content": "4", "tool_call_id": "t1"},
        ]
    )

    assert [message.text for message in call.messages] == ["be kind", "a\nb", "", "4"]
    assert (call.messages[2].tool_calls[0].name, call.messages[3].tool_call_id) == ("f", "t1")


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3))), ("", ("",))],
)
def test_prompts_have_four_forms(prompt: object, read: tuple[object, ...]) -> None:
    """A prompt is a text, token ids, or an array of either; a completion has 16 tokens unless told."""
    call = parse(Completions(), prompt=prompt)

    assert (call.prompts, call.messages, call.max_tokens) == (read, (), 16)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"model": None}, "model", "required"),
        ({"model": 5}, "model", "must be a string, not an integer"),
        ({"messages": None}, "messages", "required"),
        ({"messages": "hi"}, "messages", "must be an array, not a string"),
        ({"messages": ["hi"]}, "messages[0]", "must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "system, developer, user, assistant"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].tool_call_id", "required"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "a string or an array"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id", "required"),
        ({"temperature": "hot"}, "temperature", "must be a number, not a string"),
        ({"temperature": True}, "temperature", "must be a number, not a boolean"),
        ({"temperature": -0.1}, "temperature", "0 to 2"),
        ({"n": 0}, "n", "1 to 128"),
        ({"n": 1.5}, "n", "must be an integer, not a number"),
        ({"max_tokens": 0}, "max_tokens", "is 0"),
        ({"stop": ["a", 1]}, "stop[1]", "must be a string"),
        ({"stop": [""]}, "stop", "empty string"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "more than max_tokens"),
        ({"stream_options": []}, "stream_options", "must be an object"),
    ],
)
def test_a_mistake_names_its_field_and_what_is_allowed(fields: dict[str, object], param: str, says: str) -> None:
    """A wrong body is a 400 with the path of the field and what may stand there."""
    with pytest.raises(Refusal, match=says) as caught:
        parse(**fields)

    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", [1]] * 200}, "n"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
    ],
)
def test_completions_refuse_what_they_cannot_do(fields: dict[str, object], param: str) -> None:
    """Fields without an effect here are refused unless they hold their default."""
    with pytest.raises(Refusal) as caught:
        parse(Completions(), **fields)

    assert caught.value.param == param
    assert parse(Completions(), echo=False, suffix="", best_of=2, n=2).choices == 2


@pytest.mark.parametrize(("body", "where"), [(b'{"a": 1,\n "b"', "line 2"), (b"", "line 1"), (b"\xff{}", "line 1")])
def test_broken_json_is_told_with_its_place(body: bytes, where: str) -> None:
    """A body that isn't JSON is refused with line and column."""
    with pytest.raises(Refusal, match=where) as caught:
        Chat().parse(body, call_id="c", tenant="t")

    assert caught.value.code == "invalid_json"


@given(st.dictionaries(FIELDS, JSON, max_size=6), st.sampled_from([Chat(), Completions()]))
def test_any_json_is_read_or_refused(fields: dict[str, object], dialect: Chat | Completions) -> None:
    """Whatever a client sends, it is a call or a 400, never a crash."""
    body = json.dumps({"model": "m", "messages": HI, "prompt": "x"} | fields).encode(errors="surrogatepass")
    try:
        assert dialect.parse(body, call_id="c", tenant="t").sequences >= 1
    except Refusal as refused:
        status = refused.status
    else:
        status = 400

    assert status == 400


@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=6), with_usage=st.booleans())
def test_a_stream_says_what_the_whole_answer_says(texts: list[str], *, with_usage: bool) -> None:
    """The texts of a stream, joined, are the text of the same answer given whole, character by character."""
    deltas = [*(Delta(text=text, tokens=1) for text in texts), Delta(finish="stop", usage=Usage(1, len(texts)))]
    call = parse(stream=True, stream_options={"include_usage": with_usage})
    answer = Chat().answer(call, now=1.0)
    stream = b"".join([answer.begin(None), *map(answer.chunk, deltas), answer.end(deltas[-1].usage)])

    whole = json.loads(Chat().answer(parse(), now=1.0).whole(deltas))
    chunks = events(stream)
    said = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])

    assert said == whole["choices"][0]["message"]["content"] == "".join(texts)
    assert ([chunk for chunk in chunks if not chunk["choices"]] != []) == with_usage
    assert stream.endswith(b"data: [DONE]\n\n")


def test_chunks_have_index_and_finish_and_one_id() -> None:
    """Every chunk has its choice's index and a finish reason that is null until the last."""
    answer = Chat().answer(parse(stream=True, n=2), now=1.0)
    stream = answer.begin(None) + answer.chunk(Delta(1, "x", 1)) + answer.chunk(Delta(1, "", 0, "length"))

    choices = [chunk["choices"][0] for chunk in events(stream)]
    assert [choice["index"] for choice in choices] == [0, 1, 1, 1]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert {chunk["id"] for chunk in events(stream)} == {"chatcmpl-c1"}


def test_tool_calls_are_streamed_with_their_index_and_joined_when_whole() -> None:
    """Each piece of a tool call has its index; only the first has id, type and name."""
    pieces = [ToolCallDelta(0, "t1", "f", '{"a"'), ToolCallDelta(0, arguments=":1}")]
    deltas = [*(Delta(tool_calls=(piece,), tokens=1) for piece in pieces), Delta(finish="tool_calls")]
    answer = Chat().answer(parse(stream=True), now=1.0)

    first, second = (
        event["choices"][0]["delta"]["tool_calls"][0] for event in events(b"".join(map(answer.chunk, deltas[:2])))
    )
    message = json.loads(Chat().answer(parse(), now=1.0).whole(deltas))["choices"][0]["message"]

    assert (first["index"], first["id"], first["type"], second["index"]) == (0, "t1", "function", 0)
    assert "id" not in second
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}


def test_logprobs_have_both_shapes() -> None:
    """Chat tells tokens as objects with bytes, completions as four parallel arrays with running offsets."""
    token = TokenLogprob("hé", tuple("hé".encode()), -0.5, (("hé", (104,), -0.5), ("x", (120,), -2.0)))
    deltas = [
        Delta(text="hé", tokens=1, logprobs=(token,)),
        Delta(text="hé", tokens=1, finish="stop", logprobs=(token,)),
    ]
    chat = json.loads(Chat().answer(parse(logprobs=True, top_logprobs=2), now=1.0).whole(deltas))
    answer = Completions().answer(parse(Completions(), logprobs=2, stream=True), now=1.0)

    streamed = [event["choices"][0]["logprobs"] for event in events(b"".join(map(answer.chunk, deltas)))]

    entry = chat["choices"][0]["logprobs"]["content"][1]
    assert (entry["token"], entry["bytes"], len(entry["top_logprobs"])) == ("hé", [104, 195, 169], 2)
    assert [piece["text_offset"] for piece in streamed] == [[0], [2]]
    assert streamed[0]["top_logprobs"] == [{"hé": -0.5, "x": -2.0}]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (429, "rate_limit_error"), (503, "server_error")],
)
def test_errors_have_openai_s_shape(status: int, kind: str) -> None:
    """A refusal is an object with message, type, param and code."""
    given_status, body = error(Refusal(status, "why", "because", param="p"), "r")

    assert given_status == status
    assert json.loads(body) == {"error": {"message": "because", "type": kind, "param": "p", "code": "why"}}
