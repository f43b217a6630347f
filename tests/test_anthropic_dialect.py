"""Anthropic's messages: what bodies mean, how mistakes are named, and what its own SDK makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import anthropic
import pytest
from anthropic.types import Message as SdkMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from backends.api import Call, Delta, Message, ToolCall, ToolCallDelta, ToolChoice, Usage
from gateway.dialects.anthropic import Messages, TokenCount, error
from gateway.refusal import Refusal
from tests.replay import replayed

HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "look", "description": "looks", "input_schema": {"type": "object"}}
TEXT = [Delta(text="Hel", tokens=1), Delta(text='lo "\n', tokens=1)]
CALL = [
    Delta(tool_calls=(ToolCallDelta(0, "call_1", "look"),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments='{"at": '),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments='"x"}'), ToolCallDelta(1, "call_2", "look"))),
]
PROMPT = Usage(7, 0, cached_tokens=4)
USAGE = Usage(7, 3, cached_tokens=4)
JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
NAMES = """model messages system tools tool_choice thinking metadata stop_sequences max_tokens"""


def parse(**fields: object) -> Call:
    """Read a body with what is required and these fields."""
    body = {"model": "m", "max_tokens": 9, "messages": HI} | fields
    return Messages().parse(json.dumps(body).encode(), call_id="c1", tenant="t")


def refused(**fields: object) -> Refusal:
    """Give the refusal of such a body."""
    with pytest.raises(Refusal) as caught:
        parse(**fields)
    return caught.value


def ended(deltas: Sequence[Delta], finish: str = "stop", stop: str | None = None) -> list[Delta]:
    """Add the last delta of a call."""
    return [*deltas, Delta(finish=finish, stop=stop, usage=USAGE)]  # type: ignore[arg-type]


def stream_of(deltas: Sequence[Delta], *, usage: Usage | None = PROMPT, **fields: object) -> list[bytes]:
    """Stream an answer to its end."""
    answer = Messages().answer(parse(stream=True, **fields), now=0.0)
    return [answer.begin(usage), *map(answer.chunk, deltas), answer.end(USAGE)]


def whole_of(deltas: Sequence[Delta]) -> SdkMessage:
    """Give an answer that isn't streamed, read strictly by the SDK's type."""
    return SdkMessage.model_validate_json(Messages().answer(parse(), now=0.0).whole(deltas), strict=True)


def events(stream: bytes) -> list[dict[str, object]]:
    """Read the events of a stream; each names itself in its line and in its body."""
    read = [event.split("\n") for event in stream.decode().split("\n\n")[:-1]]
    bodies = [json.loads(data.removeprefix("data: ")) for _, data in read]
    assert [line for line, _ in read] == [f"event: {body['type']}" for body in bodies]
    return bodies


async def told(pieces: Sequence[bytes]) -> SdkMessage:
    """Let the real SDK gather a stream into its message."""
    async with (
        replayed(pieces) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=HI) as stream,
    ):
        return await stream.get_final_message()


async def created(body: bytes, status: int) -> SdkMessage:
    """Let the real SDK read an answer that isn't streamed."""
    async with (
        replayed([body], status=status, kind="application/json") as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
    ):
        return await client.messages.create(model="m", max_tokens=9, messages=HI)


def test_what_is_not_said_has_its_default() -> None:
    """A minimal body samples at temperature 1; null means the same as absent."""
    nulls = dict.fromkeys(("temperature", "top_k", "stop_sequences", "system", "tools", "thinking", "metadata"))

    assert parse() == parse(**nulls)
    assert (parse().max_tokens, parse().sampling.temperature, parse().messages) == (9, 1.0, (Message("user", "hi"),))


def test_every_field_arrives() -> None:
    """Sampling, stops, tools and the answer's format of a body are those of its call."""
    schema = {"type": "object"}
    call = parse(
        temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["x"], stream=True, tools=[TOOL],
        tool_choice={"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )  # fmt: skip

    assert (call.sampling.temperature, call.sampling.top_p, call.sampling.top_k) == (0.5, 0.9, 7)
    assert (call.stop, call.stream, call.tools[0].parameters) == (("x",), True, schema)
    assert (call.tool_choice, call.parallel_tool_calls) == (ToolChoice("required", "look"), False)
    assert (call.response_format.kind, call.response_format.schema) == ("json_schema", schema)


def test_system_is_text_or_blocks() -> None:
    """The system prompt comes first, given as a string or as blocks with cache marks."""
    blocks = [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "brief"}]

    assert parse(system="be\nbrief").messages == parse(system=blocks).messages
    assert parse(system=blocks).messages[0] == Message("system", "be\nbrief")


def test_a_tool_conversation_is_read_in_order() -> None:
    """A tool's use and result become a call and an answer to it; thinking is dropped and an error is told."""
    result = {"type": "tool_result", "tool_use_id": "call_1", "is_error": True}
    use = {"type": "tool_use", "id": "call_1", "name": "look", "input": {"at": "x"}}
    said = [{"type": "text", "text": "gone"}, {"type": "text", "text": "so?"}]
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    messages = [
        *HI,
        {"role": "assistant", "content": [thought, {"type": "text", "text": "wait"}, use]},
        {"role": "user", "content": [result | {"content": said[:1]}, *said[1:]]},
    ]

    assert parse(messages=messages).messages[1:] == (
        Message("assistant", "wait", tool_calls=(ToolCall("call_1", "look", '{"at":"x"}'),)),
        Message("tool", "Error: gone", tool_call_id="call_1"),
        Message("user", "so?"),
    )


def test_neighbours_of_one_role_are_one_turn() -> None:
    """Consecutive messages of the user are combined, as Anthropic does."""
    assert parse(messages=[*HI, *HI]).messages == (Message("user", "hi\nhi"),)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"messages": [*HI, {"role": "assistant", "content": "The"}]}, "messages[1]"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ],
)
def test_a_mistake_is_named_by_its_path(fields: dict[str, object], param: str) -> None:
    """What cannot be meant or done is a 400 that names the field, and an image its block."""
    refusal = refused(**fields)

    assert (refusal.status, refusal.param) == (400, param)
    assert refusal.message.startswith(param)


async def test_a_stream_is_the_message_that_was_said() -> None:
    """The SDK gathers text, both tool calls, the stop reason and the usage from the events."""
    message = await told(stream_of(ended([*TEXT, *CALL], "tool_calls")))

    text, first, second = message.content
    assert (text.type, text.text) == ("text", 'Hello "\n')
    assert (first.id, first.name, first.input) == ("call_1", "look", {"at": "x"})
    assert (second.id, second.input, message.stop_reason) == ("call_2", {}, "tool_use")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (3, 4, 3)


def test_every_event_is_of_the_published_shape() -> None:
    """Each event is valid for the SDK's strict types, names itself, and they come in the published order."""
    read = events(b"".join(stream_of(ended([*TEXT, *CALL], "tool_calls"))))
    for event in read:
        if event["type"] != "ping":
            TypeAdapter(RawMessageStreamEvent).validate_python(event, strict=True)

    kinds = " ".join(dict.fromkeys(str(event["type"]).removeprefix("content_block_") for event in read))
    assert kinds == "message_start ping start delta stop message_delta message_stop"
    assert [event["index"] for event in read if event["type"] == "content_block_stop"] == [0, 1, 2]


def test_thoughts_are_a_block_of_the_published_shape() -> None:
    """Their events are valid for the SDK's strict types; a signature ends them, before the text begins."""
    thought = [Delta(reasoning="h"), Delta(text="x", reasoning="m")]
    read = events(b"".join(stream_of(ended(thought), thinking={"type": "adaptive"})))
    for event in read[2:]:
        TypeAdapter(RawMessageStreamEvent).validate_python(event, strict=True)

    deltas = [event["delta"]["type"] for event in read if event["type"] == "content_block_delta"]  # type: ignore[index]
    assert deltas == ["thinking_delta", "thinking_delta", "signature_delta", "text_delta"]


def test_the_prompts_counts_are_told_at_the_end_if_not_before() -> None:
    """A stream that starts without counts has them in its message_delta."""
    first, *_, last, _ = events(b"".join(stream_of(ended(TEXT), usage=None)))

    assert first["message"]["usage"]["input_tokens"] == 0  # type: ignore[index]
    assert last["usage"]["input_tokens"] == 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("finish", "stop", "reason"),
    [
        ("stop", None, "end_turn"),
        ("stop", "END", "stop_sequence"),
        ("length", None, "max_tokens"),
        ("content_filter", None, "refusal"),
    ],
)
async def test_the_stop_reason_is_anthropics(finish: str, stop: str | None, reason: str) -> None:
    """Each finish has its stop reason, streamed and whole, with the stop sequence that was hit."""
    for message in (await told(stream_of(ended(TEXT, finish, stop))), whole_of(ended(TEXT, finish, stop))):
        assert (message.stop_reason, message.stop_sequence) == (reason, stop)


async def test_a_broken_stream_raises_and_never_stops_cleanly() -> None:
    """An error after the first byte is an event that the SDK raises, without message_stop and with the request's id."""
    answer = Messages().answer(parse(stream=True), now=0.0)
    broken = answer.error(Refusal(503, "worker_lost", "the worker was lost; try again"), "req_1")

    with pytest.raises(anthropic.APIStatusError) as caught:
        await told([answer.begin(None), answer.chunk(TEXT[0]), broken])

    assert "the worker was lost" in caught.value.message
    assert b"message_stop" not in broken
    assert (events(broken)[0]["request_id"], events(broken)[0]["error"]["type"]) == ("req_1", "overloaded_error")  # type: ignore[index]


@pytest.mark.parametrize(
    ("status", "told_as", "kind", "raised"),
    [
        (400, 400, "invalid_request_error", anthropic.BadRequestError),
        (401, 401, "authentication_error", anthropic.AuthenticationError),
        (403, 403, "permission_error", anthropic.PermissionDeniedError),
        (404, 404, "not_found_error", anthropic.NotFoundError),
        (413, 413, "request_too_large", anthropic.RequestTooLargeError),
        (429, 429, "rate_limit_error", anthropic.RateLimitError),
        (500, 500, "api_error", anthropic.InternalServerError),
        (503, 529, "overloaded_error", anthropic.OverloadedError),
        (504, 504, "timeout_error", anthropic.DeadlineExceededError),
    ],
)
async def test_a_refusal_is_the_sdks_error(
    status: int, told_as: int, kind: str, raised: type[anthropic.APIStatusError]
) -> None:
    """Every refusal has Anthropic's status and type, which the SDK turns into its own exception."""
    given_status, body = error(Refusal(status, "code", "say why"), "req_1")

    with pytest.raises(raised) as caught:
        await created(body, given_status)

    assert caught.value.status_code == given_status == told_as
    assert caught.value.body == {"type": "error", "error": {"type": kind, "message": "say why"}, "request_id": "req_1"}


def test_input_that_is_no_json_is_an_error_and_one_cut_short_is_left_out() -> None:
    """A whole message never invents a tool's input: broken is a 502, cut by the limit is not told."""
    broken = [Delta(tool_calls=(ToolCallDelta(0, "call_1", "look", '{"at": '),))]

    assert whole_of(ended([*TEXT, *broken], "length")).content[0].type == "text"
    with pytest.raises(Refusal) as caught:
        whole_of(ended(broken, "tool_calls"))
    assert (caught.value.status, "look" in caught.value.message) == (502, True)


def test_input_too_deep_to_be_written_is_a_mistake() -> None:
    """A tool's input that is nested too deeply for our JSON is a 400, not a bug."""
    nested = "[" * 500 + "]" * 500
    use = f'{{"type":"tool_use","id":"i","name":"n","input":{{"a":{nested}}}}}'
    body = f'{{"model":"m","max_tokens":9,"messages":[{{"role":"assistant","content":[{use}]}}]}}'

    with pytest.raises(Refusal) as caught:
        Messages().parse(body.encode(), call_id="c1", tenant="t")

    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[0].input")


def test_counting_needs_no_limit() -> None:
    """count_tokens reads the same prompt without max_tokens, and answers in Anthropic's shape."""
    body = json.dumps({"model": "m", "messages": HI, "system": "be", "tools": [TOOL]}).encode()
    call = TokenCount().parse(body, call_id="c1", tenant="t")

    assert (call.messages, call.tools) == (parse(system="be").messages, parse(tools=[TOOL]).tools)
    assert json.loads(TokenCount().counted(12)) == {"input_tokens": 12}


@given(st.text(), st.lists(st.integers(0, 40), max_size=4))
def test_any_split_of_the_text_is_the_same_message(text: str, cuts: list[int]) -> None:
    """However the deltas are cut, streamed and whole say the same, and the bytes are valid events."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    deltas = ended([Delta(text=text[start:end]) for start, end in pairwise(edges)])
    streamed = [event for event in events(b"".join(stream_of(deltas))) if event["type"] == "content_block_delta"]

    assert "".join(event["delta"]["text"] for event in streamed) == text  # type: ignore[index]
    assert "".join(block.text for block in whole_of(deltas).content) == text  # type: ignore[union-attr]


@given(JSON, st.sampled_from(NAMES.split()))
def test_no_body_is_a_bug(value: object, field: str) -> None:
    """Any JSON in any field is read or refused with a 400."""
    try:
        parse(**{field: value})
    except Refusal as refusal:
        assert refusal.status == 400  # noqa: PT017 - most bodies are refused, and some are not
