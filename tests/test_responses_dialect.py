"""OpenAI's responses: what bodies mean, what is kept for the next call, and what the real SDK makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from backends.api import Call, Delta, Message, TokenLogprob, ToolCall, ToolCallDelta, ToolChoice, Usage
from gateway.dialects.responses import Responses
from gateway.dialects.stored import MemoryResponses, StoredResponse
from gateway.refusal import Refusal
from tests.replay import replayed

TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
TEXT = [Delta(text="Hel", tokens=1), Delta(text='lo "\n', tokens=1)]
CALLED = [
    Delta(tool_calls=(ToolCallDelta(0, "call_1", "look"),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments='{"at": '),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments='"x"}'), ToolCallDelta(1, "call_2", "look", "{}"))),
]
USAGE = Usage(7, 3, cached_tokens=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = """model input instructions tools tool_choice text reasoning metadata conversation previous_response_id include
truncation store max_output_tokens"""


@pytest.fixture
def stored() -> MemoryResponses:
    """Give an empty store."""
    return MemoryResponses()


@pytest.fixture
def dialect(stored: MemoryResponses) -> Responses:
    """Give the dialect over it."""
    return Responses(stored)


def parse(dialect: Responses, call_id: str = "c1", tenant: str = "t", **fields: object) -> Call:
    """Read a body with what is required and these fields."""
    body = {"model": "m", "input": "hi"} | fields
    return dialect.parse(json.dumps(body).encode(), call_id=call_id, tenant=tenant)


def refused(dialect: Responses, **fields: object) -> Refusal:
    """Give the refusal of such a body."""
    with pytest.raises(Refusal) as caught:
        parse(dialect, **fields)
    return caught.value


def ended(deltas: Sequence[Delta], finish: str = "stop") -> list[Delta]:
    """Add the last delta of a call."""
    return [*deltas, Delta(finish=finish, usage=USAGE)]  # type: ignore[arg-type]


def stream_of(dialect: Responses, deltas: Sequence[Delta], **fields: object) -> list[bytes]:
    """Stream an answer to its end."""
    answer = dialect.answer(parse(dialect, stream=True, **fields), now=1.5)
    return [answer.begin(None), *map(answer.chunk, deltas), answer.end(USAGE)]


def whole_of(dialect: Responses, deltas: Sequence[Delta], **fields: object) -> Response:
    """Give an answer that isn't streamed, read strictly by the SDK's type."""
    return Response.model_validate_json(dialect.answer(parse(dialect, **fields), now=1.0).whole(deltas), strict=True)


def events(stream: bytes) -> list[dict[str, object]]:
    """Read the events of a stream; each names itself in its line and in its body."""
    read = [event.split("\n") for event in stream.decode().split("\n\n")[:-1]]
    bodies = [json.loads(data.removeprefix("data: ")) for _, data in read]
    assert [line for line, _ in read] == [f"event: {body['type']}" for body in bodies]
    return bodies


async def told(pieces: Sequence[bytes]) -> Response:
    """Let the real SDK gather a stream into its response."""
    async with (
        replayed(pieces) as url,
        openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client,
        client.responses.stream(model="m", input="hi") as stream,
    ):
        return await stream.get_final_response()


def test_what_is_not_said_has_its_default(dialect: Responses) -> None:
    """A minimal body samples at temperature 1 without a limit; null means the same as absent."""
    nulls = dict.fromkeys(NAMES.split()[2:]) | {"temperature": None, "stream": None}

    assert parse(dialect) == parse(dialect, **nulls)
    assert parse(dialect).messages == (Message("user", "hi"),)
    assert (parse(dialect).max_tokens, parse(dialect).sampling.temperature) == (None, 1.0)


def test_every_field_arrives(dialect: Responses) -> None:
    """Instructions, sampling, limits, tools and the text's format of a body are those of its call."""
    schema = {"type": "object"}
    call = parse(
        dialect, instructions="be brief", temperature=0.5, top_p=0.9, max_output_tokens=9, stream=True, tools=[TOOL],
        tool_choice={"type": "function", "name": "look"}, parallel_tool_calls=False, top_logprobs=2,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema}},
        include=["message.output_text.logprobs"],
    )  # fmt: skip

    assert call.messages == (Message("system", "be brief"), Message("user", "hi"))
    assert (call.sampling.temperature, call.sampling.top_p, call.max_tokens, call.stream) == (0.5, 0.9, 9, True)
    assert (call.tool_choice, call.parallel_tool_calls) == (ToolChoice("required", "look"), False)
    assert (call.response_format.schema, call.logprobs, call.tools[0].strict) == (schema, 2, True)


def test_items_of_every_kind_are_read(dialect: Responses) -> None:
    """Messages with and without a type, calls and their outputs become turns; reasoning is skipped."""
    items = [
        {"role": "developer", "content": "be"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait"}]},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "seen"}]},
    ]

    assert parse(dialect, input=items).messages == (
        Message("developer", "be"),
        Message("user", "hi"),
        Message("assistant", "wait", tool_calls=(ToolCall("call_1", "look", "{}"),)),
        Message("tool", "seen", tool_call_id="call_1"),
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"temperature": 3}, "temperature"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"truncation": "middle"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"conversation": "c", "store": False}, "conversation"),
    ],
)
def test_a_mistake_is_named_by_its_path(dialect: Responses, fields: dict[str, object], param: str) -> None:
    """What cannot be meant or done is a 400 that names the field, and a hosted tool its type."""
    refusal = refused(dialect, **fields)

    assert (refusal.status, refusal.param) == (400, param)


async def test_a_stream_is_the_response_that_was_said(dialect: Responses) -> None:
    """The SDK gathers text, both function calls and the usage from the events."""
    response = await told(stream_of(dialect, ended([*TEXT, *CALLED], "tool_calls"), tools=[TOOL]))

    text, first, second = response.output
    assert (text.type, response.output_text, response.status) == ("message", 'Hello "\n', "completed")
    assert (first.call_id, first.name, first.arguments) == ("call_1", "look", '{"at": "x"}')  # type: ignore[union-attr]
    assert second.arguments == "{}"  # type: ignore[union-attr]
    assert (response.usage.input_tokens_details.cached_tokens, response.usage.total_tokens) == (4, 10)


def test_every_event_is_of_the_published_shape(dialect: Responses) -> None:
    """Each event is valid for the SDK's strict types, numbered without a gap, in the published order."""
    read = events(b"".join(stream_of(dialect, ended([*TEXT, *CALLED], "tool_calls"), tools=[TOOL])))
    for event in read:
        TypeAdapter(ResponseStreamEvent).validate_json(json.dumps(event), strict=True)

    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    assert [str(event["type"]).removeprefix("response.") for event in read[:11]] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "output_item.added",
        "function_call_arguments.delta",
    ]  # fmt: skip
    assert (read[-1]["type"], read[0]["response"]["created_at"]) == ("response.completed", 1)  # type: ignore[index]


def test_thoughts_are_an_item_of_the_published_shape(dialect: Responses) -> None:
    """Its events are valid for the SDK's strict types and come as those of a message do."""
    read = events(b"".join(stream_of(dialect, ended([Delta(reasoning="h"), Delta(text="x", reasoning="m")]))))
    for event in read:
        TypeAdapter(ResponseStreamEvent).validate_json(json.dumps(event), strict=True)

    assert [str(event["type"]).removeprefix("response.") for event in read[2:10]] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done", "output_item.added",
    ]  # fmt: skip
    assert [item["type"] for item in read[-1]["response"]["output"]] == ["reasoning", "message"]  # type: ignore[index]


def test_the_body_is_the_last_event_of_the_stream(dialect: Responses) -> None:
    """An answer that isn't streamed is the full object that a stream completes with."""
    last = events(b"".join(stream_of(dialect, ended([*TEXT, *CALLED], "tool_calls"))))[-1]
    whole = dialect.answer(parse(dialect), now=1.0).whole(ended([*TEXT, *CALLED], "tool_calls"))

    assert json.loads(whole) == last["response"]


def test_the_request_is_told_back(dialect: Responses) -> None:
    """The full object says what was asked, as the SDKs' types require."""
    asked = {"instructions": "be", "max_output_tokens": 9, "metadata": {"a": "b"}, "temperature": 0.5, "user": "u"}
    response = whole_of(dialect, ended(TEXT), tools=[TOOL], tool_choice="required", **asked)

    assert response.model_dump(include=set(asked)) == asked
    assert (response.tools[0].name, response.tool_choice) == ("look", "required")  # type: ignore[union-attr]


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_cut_short_is_incomplete(dialect: Responses, finish: str, reason: str) -> None:
    """The limit ends a response as incomplete, with the reason, in its item too."""
    last = events(b"".join(stream_of(dialect, ended(TEXT, finish))))[-1]
    response = whole_of(dialect, ended(TEXT, finish))

    assert (last["type"], response.status) == ("response.incomplete", "incomplete")
    assert (response.incomplete_details.reason, response.output[0].status) == (reason, "incomplete")  # type: ignore[union-attr]


def test_logprobs_are_told_where_asked_for(dialect: Responses) -> None:
    """Logprobs come with the deltas and again with the whole text."""
    entry = TokenLogprob("Hi", (72, 105), -0.5, ((("Ho"), (72, 111), -1.5),))
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    deltas = ended([Delta(text="Hi", tokens=1, logprobs=(entry,))])
    delta = next(event for event in events(b"".join(stream_of(dialect, deltas, **asked))) if "delta" in event)

    assert delta["logprobs"][0]["top_logprobs"][0]["token"] == "Ho"  # type: ignore[index]
    assert whole_of(dialect, deltas, **asked).output[0].content[0].logprobs[0].logprob == -0.5  # type: ignore[union-attr]


async def test_a_broken_stream_raises_and_never_completes(dialect: Responses) -> None:
    """An error after the first byte fails the response and raises in the SDK; nothing of it is stored."""
    answer = dialect.answer(parse(dialect, stream=True), now=1.0)
    begun, said = answer.begin(None), answer.chunk(TEXT[0])
    broken = answer.error(Refusal(503, "worker_lost", "the worker was lost"), "req_1")

    with pytest.raises(openai.APIError, match="the worker was lost"):
        await told([begun, said, broken])
    failed, error = events(broken)[-2:]
    TypeAdapter(ResponseStreamEvent).validate_json(json.dumps(failed), strict=True)
    assert (failed["type"], error["type"], error["code"]) == ("response.failed", "error", "worker_lost")
    assert b"response.completed" not in broken
    with pytest.raises(Refusal):
        dialect.retrieve("resp_c1", tenant="t")


def test_a_response_continues_the_one_before(dialect: Responses) -> None:
    """previous_response_id brings back what was said, without the instructions of then; store is on by default."""
    first = whole_of(dialect, ended(TEXT), instructions="be")
    call = parse(dialect, "c2", input="and?", previous_response_id=first.id, instructions="go")

    said = [(message.role, message.text) for message in call.messages]
    assert said == [("system", "go"), ("user", "hi"), ("assistant", 'Hello "\n'), ("user", "and?")]


def test_a_function_call_is_continued_by_its_output(dialect: Responses) -> None:
    """After a stored call only its output needs to be sent; call and text are one turn."""
    first = whole_of(dialect, ended([*TEXT, *CALLED], "tool_calls"), tools=[TOOL])
    output = {"type": "function_call_output", "call_id": "call_1", "output": "seen"}
    _, assistant, tool = parse(dialect, "c2", previous_response_id=first.id, input=[output]).messages

    assert ([call.id for call in assistant.tool_calls], assistant.text) == (["call_1", "call_2"], 'Hello "\n')
    assert tool == Message("tool", "seen", tool_call_id="call_1")


def test_items_of_a_stored_response_can_be_referred_to(dialect: Responses) -> None:
    """An item_reference, which the Vercel SDK sends instead of items, means what the item said."""
    text, call, _ = whole_of(dialect, ended([*TEXT, *CALLED], "tool_calls")).output
    items = [{"role": "user", "content": "hi"}, *({"type": "item_reference", "id": item.id} for item in (text, call))]
    turn = parse(dialect, "c2", input=items).messages[-1]

    assert turn == Message("assistant", 'Hello "\n', tool_calls=(ToolCall("call_1", "look", '{"at": "x"}'),))
    assert refused(dialect, input=[{"type": "item_reference", "id": "msg_9_c1"}]).status == 404


def test_a_conversation_grows_by_itself(dialect: Responses) -> None:
    """Calls of one conversation follow each other without naming responses; its id is told back."""
    first = whole_of(dialect, ended(TEXT), conversation="conv_1")
    call = parse(dialect, "c2", input="and?", conversation={"id": "conv_1"})

    assert [message.text for message in call.messages] == ["hi", 'Hello "\n', "and?"]
    assert first.conversation is not None
    assert first.conversation.id == "conv_1"
    assert refused(dialect, conversation="conv_1", previous_response_id=first.id).param == "previous_response_id"


def test_nobody_sees_another_tenants_responses(dialect: Responses) -> None:
    """A foreign response, its items and its conversation are as if they didn't exist: 404, or nothing said yet."""
    mine = whole_of(dialect, ended(TEXT), conversation="conv_1")

    assert parse(dialect, tenant="other", conversation="conv_1").messages == (Message("user", "hi"),)
    for fields in ({"previous_response_id": mine.id}, {"input": [{"id": mine.output[0].id}]}):
        assert refused(dialect, tenant="other", **fields).status == 404
    for each in (dialect.retrieve, dialect.delete):
        with pytest.raises(Refusal) as caught:
            each(mine.id, tenant="other")
        assert caught.value.status == 404


def test_a_response_can_be_read_again_and_deleted(dialect: Responses) -> None:
    """GET gives the very object that was told; DELETE forgets it, and with it what would continue it."""
    told_body = dialect.answer(parse(dialect), now=1.0).whole(ended(TEXT))

    assert dialect.retrieve("resp_c1", tenant="t") == told_body
    assert json.loads(dialect.delete("resp_c1", tenant="t")) == {"id": "resp_c1", "object": "response", "deleted": True}
    assert refused(dialect, previous_response_id="resp_c1").status == 404


def test_what_shall_not_be_stored_is_not(dialect: Responses, stored: MemoryResponses) -> None:
    """With store = false nothing is kept."""
    whole_of(dialect, ended(TEXT), store=False)

    assert stored.held_bytes("t") == 0


def a_response(number: int, *, tenant: str = "t", characters: int = 1000) -> StoredResponse:
    """Give a response of about that size."""
    turns = (Message("user", "x" * characters),)
    return StoredResponse(f"resp_{number}", tenant, b"{}", turns, (), conversation=f"conv_{number}")


def test_a_tenant_keeps_what_it_used_last() -> None:
    """Beyond the bound the response used longest ago goes, with its conversation, and only of the same tenant."""
    stored = MemoryResponses(tenant_bytes=3000)
    stored.keep(a_response(0, tenant="other"))
    stored.keep(a_response(1))
    stored.keep(a_response(2))
    stored.find("t", "resp_1")
    stored.keep(a_response(3))

    kept = [number for number in (1, 2, 3) if stored.find("t", f"resp_{number}")]
    assert (kept, stored.latest("t", "conv_2")) == ([1, 3], None)
    assert stored.find("other", "resp_0") is not None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4000), st.booleans())))
def test_the_bound_always_holds(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever is kept, replaced and forgotten, no tenant holds more than its bound, and nothing holds nothing."""
    stored = MemoryResponses(tenant_bytes=5000)
    for number, characters, is_kept in steps:
        if is_kept:
            stored.keep(a_response(number, characters=characters))
        else:
            stored.forget("t", f"resp_{number}")
        assert 0 <= stored.held_bytes("t") <= 5000

    for number in range(6):
        stored.forget("t", f"resp_{number}")
    assert stored.held_bytes("t") == 0


@given(st.text(), st.lists(st.integers(0, 40), max_size=4))
def test_any_split_of_the_text_is_the_same_response(text: str, cuts: list[int]) -> None:
    """However the deltas are cut, the deltas, the done event and the final object say the same text."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    deltas = ended([Delta(text=text[start:end]) for start, end in pairwise(edges)])
    read = events(b"".join(stream_of(Responses(MemoryResponses()), deltas)))

    assert "".join(str(event["delta"]) for event in read if "delta" in event) == text
    assert "".join(str(event["text"]) for event in read if "text" in event) == text
    assert Response.model_validate(read[-1]["response"]).output_text == text


@given(JSON, st.sampled_from(NAMES.split()))
def test_no_body_is_a_bug(value: object, field: str) -> None:
    """Any JSON in any field is read and answered, or refused."""
    dialect = Responses(MemoryResponses())
    try:
        dialect.answer(parse(dialect, **{field: value}), now=1.0).whole(ended(TEXT))
    except Refusal as refusal:
        assert refusal.status in {400, 404}  # noqa: PT017 - most bodies are refused, and some are not
