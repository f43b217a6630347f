"""What servers of both APIs say, as deltas."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from backends.anthropic_upstream import AnthropicUpstream
from backends.api import BackendError, Call, Delta, Message, ToolCallDelta, Usage
from backends.openai_upstream import OpenAIUpstream
from backends.sse import Event
from backends.upstream import UpstreamAnswer, UpstreamDialect

CALL = Call("id", "m", (Message("user", "hi"),), stop=("END",))
START = {"type": "message_start", "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 4}}}
STOP = {"type": "message_stop"}


def read(answer: UpstreamAnswer, events: Iterable[object]) -> list[Delta]:
    """Give all deltas of these events."""
    deltas = [delta for each in events for delta in answer.read(Event(json.dumps(each).encode()))]
    return deltas + list(answer.end())


def said(dialect: UpstreamDialect, *events: object, call: Call = CALL) -> list[Delta]:
    """Give all deltas of an answer."""
    return read(dialect.answer(call), events)


def chunks(*choices: dict[str, object]) -> list[Delta]:
    """Give the deltas of chunks with these choices."""
    return said(OpenAIUpstream(), *({"choices": [each]} for each in choices))


def messages(*events: dict[str, object]) -> list[Delta]:
    """Give the deltas of a message with these events in it."""
    return said(AnthropicUpstream(), START, *events, STOP)


def ended(reason: str, **fields: object) -> dict[str, object]:
    """End a message."""
    usage = {"output_tokens": 5}
    return {"type": "message_delta", "delta": {"stop_reason": reason, **fields}, "usage": usage}


def tool_chunk(index: int | None, **piece: object) -> dict[str, object]:
    """Write a choice with a piece of a tool call; without an index as some servers leave it out."""
    named = {} if index is None else {"index": index}
    function = {name: piece.pop(name) for name in ("name", "arguments") if name in piece}
    return {"index": 0, "delta": {"tool_calls": [{**named, **piece, "function": function}]}}


FINISHED = {"index": 0, "delta": {}, "finish_reason": "stop"}
A, B = ToolCallDelta(0, "a", "f", ""), ToolCallDelta(1, "b", "g", "")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (
            [
                tool_chunk(0, id="a", name="f", arguments=""),
                tool_chunk(0, arguments="{}"),
                tool_chunk(1, id="b", name="g"),
            ],
            [A, ToolCallDelta(0, arguments="{}"), B],
        ),
        (
            [tool_chunk(0, id="a", name="f"), tool_chunk(0, id="a", name="f", arguments="{}")],
            [A, ToolCallDelta(0, arguments="{}")],
        ),
        ([tool_chunk(None, id="a", name="f"), tool_chunk(None, id="b", name="g")], [A, B]),
        (
            [tool_chunk(None, name="f"), tool_chunk(None, arguments="{}"), tool_chunk(None, name="g")],
            [
                ToolCallDelta(0, "call_id_0_1", "f"),
                ToolCallDelta(0, arguments="{}"),
                ToolCallDelta(1, "call_id_0_2", "g"),
            ],
        ),
        ([tool_chunk(7, id="a", name="f"), tool_chunk(9, id="b", name="g")], [A, B]),
    ],
)
def test_tool_calls_are_told_apart(pieces: list[dict[str, object]], expected: list[ToolCallDelta]) -> None:
    """By index, or by id, or by name where servers leave the others out; the finish says that one was called."""
    deltas = chunks(*pieces, FINISHED)

    assert [piece for delta in deltas for piece in delta.tool_calls] == expected
    assert deltas[-1].finish == "tool_calls"


def test_a_piece_of_a_tool_call_without_a_name_is_broken() -> None:
    """Nothing can be called by it."""
    with pytest.raises(BackendError, match="no name"):
        chunks(tool_chunk(0, arguments="{}"), FINISHED)


def test_every_choice_ends_and_the_last_end_has_the_counts() -> None:
    """The end that comes last waits for the usage, the others do not."""
    call = replace(CALL, choices=2)
    events = [{"choices": [{"index": i, "delta": {"content": "x"}, "finish_reason": "stop"}]} for i in (1, 0)]
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    deltas = said(OpenAIUpstream(), *events, usage, call=call)

    assert [(delta.index, delta.finish, delta.usage) for delta in deltas] == [
        (1, None, None),
        (1, "stop", None),
        (0, None, None),
        (0, "stop", Usage(1, 2)),
    ]


def test_a_choice_that_was_not_asked_for_is_broken() -> None:
    """It could not be told to anybody."""
    with pytest.raises(BackendError, match="choice 3"):
        chunks({"index": 3, "delta": {"content": "x"}})


def test_logprobs_of_both_shapes_are_read() -> None:
    """A chat has objects, a completion parallel arrays; the number of tokens is exact then."""
    token = {"token": "hé", "logprob": -0.5, "bytes": [104, 195, 169], "top_logprobs": [{"token": "x", "logprob": -1}]}
    arrays = {"tokens": ["hé"], "token_logprobs": [-0.5], "top_logprobs": [{"x": -1.0}]}

    (chat, _) = chunks({"index": 0, "delta": {"content": "hé"}, "logprobs": {"content": [token]}}, FINISHED)
    (text, _) = chunks({"index": 0, "text": "hé", "logprobs": arrays}, FINISHED)

    assert chat.logprobs == text.logprobs
    assert (chat.logprobs[0].logprob, chat.logprobs[0].top) == (-0.5, (("x", (120,), -1.0),))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_told_apart_and_a_refusal_is_text(name: str) -> None:
    """Servers have two names for what a model thought; a refusal is what it said."""
    deltas = chunks({"index": 0, "delta": {name: "hm"}}, {"delta": {"refusal": "No."}}, FINISHED)

    assert [(delta.reasoning, delta.text) for delta in deltas] == [("hm", ""), ("", "No."), ("", "")]


@pytest.mark.parametrize("name", ["stop_reason", "matched_stop"])
def test_the_stop_string_is_handed_on_where_it_is_told(name: str) -> None:
    """Clients of Anthropic's API are told which one it was."""
    assert chunks({"index": 0, "delta": {}, "finish_reason": "stop", name: "END"})[-1].stop == "END"
    assert chunks({"index": 0, "delta": {}, "finish_reason": "stop", name: 128001})[-1].stop is None


def test_a_message_is_text_with_counts_first_and_last() -> None:
    """What was read from the cache is part of the prompt's count."""
    deltas = messages(
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "something_new"},
        ended("end_turn"),
    )

    assert deltas == [
        Delta(usage=Usage(7, 0, 4)),
        Delta(text="hi", tokens=1),
        Delta(finish="stop", usage=Usage(7, 5, 4)),
    ]


def test_thinking_of_a_message_keeps_its_signature() -> None:
    """A server wants both back, so both are told."""
    deltas = messages(
        {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "s"}},
        ended("end_turn"),
    )

    assert deltas[1:3] == [Delta(tokens=1, reasoning="hm"), Delta(signature="s")]


def test_tools_of_a_message_have_arguments_even_when_they_have_none() -> None:
    """An empty input is an empty object, as other APIs expect; one that comes at once is written out."""
    blocks = [{"type": "tool_use", "id": i, "name": "f", "input": given} for i, given in (("a", {}), ("b", {"x": 1}))]
    starts = [{"type": "content_block_start", "content_block": block} for block in blocks]

    deltas = messages(starts[0], {"type": "content_block_stop"}, starts[1], ended("tool_use"))

    assert [piece for delta in deltas for piece in delta.tool_calls] == [
        ToolCallDelta(0, "a", "f"),
        ToolCallDelta(0, arguments="{}"),
        ToolCallDelta(1, "b", "f", '{"x":1}'),
    ]
    assert deltas[-1].finish == "tool_calls"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop_sequence", "stop"), ("max_tokens", "length"), ("refusal", "content_filter"), ("pause_turn", "stop")],
)
def test_every_stop_reason_has_a_finish(reason: str, finish: str) -> None:
    """And the stop string that was hit is told."""
    last = messages(ended(reason, stop_sequence="END"))[-1]

    assert (last.finish, last.stop) == (finish, "END")


def test_a_whole_message_is_read_as_well() -> None:
    """A server that does not stream answers with the object."""
    answer = AnthropicUpstream().answer(CALL)
    content = [{"type": "text", "text": "hi"}, {"type": "tool_use", "id": "a", "name": "f", "input": {}}]
    usage = {"input_tokens": 3, "output_tokens": 5}

    deltas = [*answer.read_whole({"content": content, "stop_reason": "tool_use", "usage": usage}), *answer.end()]

    assert "".join(piece.arguments for delta in deltas for piece in delta.tool_calls) == "{}"
    assert (deltas[0].text, deltas[-1].finish, deltas[-1].usage) == ("hi", "tool_calls", Usage(3, 5))


@pytest.mark.parametrize(
    "events",
    [
        [],
        [START],
        [START, {"type": "content_block_delta", "delta": {"text": "hi"}}],
        [START, {"type": "content_block_delta", "delta": {"text": "hi"}}, STOP],
        [START, {"type": "content_block_delta", "delta": {"partial_json": "{"}}],
        [START, {"type": "error", "error": {"type": "api_error", "message": "no"}}],
        [["no object"]],
    ],
)
def test_a_message_that_breaks_off_never_looks_whole(events: list[object]) -> None:
    """Without a stop reason it is not complete, whatever else comes."""
    with pytest.raises(BackendError) as failure:
        said(AnthropicUpstream(), *events)

    assert failure.value.kind == "broken"
