"""Structured output and tools as users of the real OpenAI SDK see them, from a real server with the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.serving import Served

TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
BOOK = {"type": "function", "function": {"name": "book_trip", "description": "Book a trip.", "parameters": TRIP}}
ASKED = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "A trip to Paris for 3 days, please."}],
    "temperature": 0,
    "max_tokens": 60,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP, "strict": True}}
NAMED = {"type": "function", "function": {"name": "book_trip"}}


@pytest.fixture
def smol(served_model: Served) -> Iterator[openai.OpenAI]:
    """Give a client of the embedded model that does not retry."""
    with openai.OpenAI(base_url=f"{served_model.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_obeys_a_json_schema(smol: openai.OpenAI) -> None:
    """What comes back parses and validates, and the answer ends because it is whole."""
    choice = smol.chat.completions.create(**ASKED, response_format=SCHEMA).choices[0]

    jsonschema.validate(json.loads(choice.message.content), TRIP)
    assert choice.finish_reason == "stop"


def test_a_choice_is_made(smol: openai.OpenAI) -> None:
    """The form that vLLM's clients send reaches the worker too."""
    extra = {"guided_choice": ["beach", "mountain"]}

    answer = smol.chat.completions.create(**ASKED, extra_body=extra)

    assert answer.choices[0].message.content in extra["guided_choice"]


def test_a_named_tool_is_called(smol: openai.OpenAI) -> None:
    """The call names the tool, its arguments validate, and nothing else is said."""
    choice = smol.chat.completions.create(**ASKED, tools=[BOOK], tool_choice=NAMED).choices[0]

    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, choice.message.content) == ("function", "book_trip", None)
    jsonschema.validate(json.loads(call.function.arguments), TRIP)
    assert choice.finish_reason == "tool_calls"


def test_a_streamed_call_is_the_same_call(smol: openai.OpenAI) -> None:
    """The name and id come first, the arguments in pieces, all under one index; then the reason."""
    asked: dict[str, Any] = {**ASKED, "tools": [BOOK], "tool_choice": NAMED}
    whole = smol.chat.completions.create(**asked).choices[0].message.tool_calls[0].function.arguments

    choices = [chunk.choices[0] for chunk in smol.chat.completions.create(**asked, stream=True)]

    pieces = [piece for choice in choices for piece in choice.delta.tool_calls or ()]
    assert [piece.index for piece in pieces] == [0] * len(pieces)
    assert (pieces[0].function.name, pieces[0].id[:5]) == ("book_trip", "call_")
    assert len(pieces) > 2
    assert "".join(piece.function.arguments for piece in pieces) == whole
    assert choices[-1].finish_reason == "tool_calls"


def test_a_tool_s_result_leads_to_an_answer(smol: openai.OpenAI) -> None:
    """The next turn carries the call and its result, and may be answered in text."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "book_trip", "arguments": '{"city":"Paris","days":3}'},
    }
    turns = [
        *ASKED["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "booked"},
    ]

    answer = smol.chat.completions.create(**{**ASKED, "messages": turns, "max_tokens": 8}, tools=[BOOK])

    assert answer.choices[0].message.content


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strng"}}}},
         "response_format.json_schema.schema"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
            "type": "object", "properties": {"a": {"type": "strng"}}}}}]}, "tools"),
    ],
)  # fmt: skip
def test_a_schema_that_makes_no_sense_is_refused(smol: openai.OpenAI, form: dict[str, Any], param: str) -> None:
    """A 400 names the field and repeats what is wrong in it."""
    with pytest.raises(openai.BadRequestError, match="strng") as caught:
        smol.chat.completions.create(**ASKED, **form)

    assert caught.value.param == param
