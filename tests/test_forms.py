"""Answers held to a form, and tool calls found in them, through the engine: toy model and embedded one."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest

from backends.api import BackendError, Call, Delta, Message, ResponseFormat, Sampling, Tool, ToolCallDelta, ToolChoice
from backends.engine import Engine
from backends.engine.answer import told
from backends.engine.forms import tool_call_id
from backends.engine.loading import load
from backends.engine.planning import Settings
from tests.conftest import SMOLLM2
from tests.toy_model import answer, finish, start, toy_call, toy_engine

CHOICES = ("yes", "no", "perhaps")
DAYS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = Tool("get_weather", "The weather of a city.", DAYS)
FORCED = ToolChoice("required", "get_weather")


def chosen(call_id: str = "call", **settings: object) -> Call:
    """Make a toy call whose answer is one of the choices."""
    return toy_call(
        call_id=call_id, response_format=ResponseFormat("choice", choices=CHOICES), max_tokens=20, **settings
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_takes_the_form_and_ends_with_it(temperature: float) -> None:
    """What the toy model would say at random becomes a choice, and the end of the form ends the answer."""
    heard = answer(chosen(temperature=temperature))

    assert heard.text("call") in CHOICES
    assert heard.deltas["call"][-1].finish == "stop"


def test_every_choice_of_a_call_has_a_mask_of_its_own() -> None:
    """Sequences of one call, and a call without a form beside them, do not disturb each other."""
    engine = toy_engine()
    start(engine, chosen("bound", choices=4, temperature=1.0), toy_call(call_id="free"))

    heard = finish(engine)

    assert {heard.text("bound", index) for index in range(4)} <= set(CHOICES)
    assert heard.text("free") == answer(toy_call()).text("call")


@pytest.mark.parametrize("held_open", [{"ignore_eos": True}, {"min_tokens": 20}])
def test_a_form_ends_an_answer_that_should_be_held_open(held_open: dict[str, object]) -> None:
    """ignore_eos and min_tokens yield to the form: behind a whole choice there is nothing to say."""
    heard = answer(chosen(**held_open))

    assert heard.text("call") in CHOICES


def test_logprobs_are_the_models_own_beside_a_form() -> None:
    """The likeliest alternatives are what the model wanted to say, not what the form let it say."""
    plain = answer(toy_call(logprobs=1)).deltas["call"][0].logprobs[0]

    bound = answer(chosen(logprobs=1)).deltas["call"][0].logprobs[0]

    assert bound.top == plain.top
    assert bound.logprob < plain.logprob


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"response_format": ResponseFormat("regex", pattern="[a-")}, "structured_outputs.regex"),
        ({"tools": (Tool("f", parameters={"type": "strng"}),), "tool_choice": ToolChoice("required")}, "tools"),
        (
            {"response_format": ResponseFormat("json_schema", schema={"type": "strng"})},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_form_that_cannot_be_enforced_is_refused(asked: dict[str, object], param: str) -> None:
    """The refusal names the field, and comes before the call stands in line."""
    with pytest.raises(BackendError, match="cannot be enforced") as refused:
        toy_engine().prepare(replace(toy_call(), **asked))  # type: ignore[arg-type]

    assert (refused.value.kind, refused.value.param) == ("rejected", param)


def test_a_schema_nested_without_end_is_refused() -> None:
    """Depth is a mistake of the caller's, not ours."""
    schema: dict[str, object] = {}
    for _ in range(2_000):
        schema = {"properties": {"a": schema}}

    with pytest.raises(BackendError, match="nested") as refused:
        toy_engine().prepare(toy_call(response_format=ResponseFormat("json_schema", schema=schema)))

    assert (refused.value.kind, refused.value.param) == ("rejected", "response_format")


def test_a_delta_tells_text_before_its_calls() -> None:
    """Text behind a tool call belongs into the next delta, so that the order survives."""
    pieces = ["a", "b", ToolCallDelta(0, "id", "f", "{"), ToolCallDelta(0, arguments="}"), "c"]

    assert [text for text, _ in told(pieces)] == ["ab", "c"]


def test_a_tool_call_has_one_id_wherever_it_is_made() -> None:
    """The id depends on the call and its place alone, and no two places share one."""
    ids = {tool_call_id("call", index, number) for index in range(3) for number in range(3)}

    assert len(ids) == 9
    assert tool_call_id("call", 1, 2) in ids


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Load the embedded model."""
    settings = Settings(
        model="smollm2",
        source=SMOLLM2,
        max_batch=8,
        token_budget=256,
        block_tokens=16,
        kv_memory_bytes=256 << 20,
        max_waiting=64,
    )
    return load(settings, lambda _what, _fraction: None, lambda _choice: None)


def ask(engine: Engine, **settings: object) -> list[Delta]:
    """Ask the embedded model about the weather."""
    call = Call("call", "m", (Message("user", "The weather in Paris for 3 days, please."),))
    asked = replace(call, **{"sampling": Sampling(temperature=0.0), "max_tokens": 60, "tools": (TOOL,), **settings})  # type: ignore[arg-type]
    start(engine, asked)
    return finish(engine).deltas["call"]


def arguments(deltas: list[Delta]) -> str:
    """Join what was said of the first tool call's arguments."""
    return "".join(piece.arguments for delta in deltas for piece in delta.tool_calls if piece.index == 0)


def test_a_forced_tool_is_called_piece_by_piece(engine: Engine) -> None:
    """Its arguments come in several deltas and obey the schema; the answer ends because of the call."""
    deltas = ask(engine, tool_choice=FORCED)

    jsonschema.validate(json.loads(arguments(deltas)), DAYS)
    assert sum(bool(delta.tool_calls) for delta in deltas) > 2
    assert not any(delta.text for delta in deltas)
    assert deltas[-1].finish == "tool_calls"


def test_a_forced_call_that_is_cut_says_so(engine: Engine) -> None:
    """A token limit inside the arguments leaves half of them, and the reason is the length."""
    deltas = ask(engine, tool_choice=FORCED, max_tokens=26)

    assert deltas[-1].finish == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments(deltas))


def test_a_beginning_of_a_forced_call_is_no_text(engine: Engine) -> None:
    """A limit before the call has a name leaves nothing at all."""
    deltas = ask(engine, tool_choice=FORCED, max_tokens=8)

    assert (deltas[-1].finish, "".join(delta.text for delta in deltas), arguments(deltas)) == ("length", "", "")


def test_a_stop_string_inside_a_call_leaves_no_call_to_be_made(engine: Engine) -> None:
    """The stop string ended the answer, not the call."""
    deltas = ask(engine, tool_choice=FORCED, stop=('"days"',))

    assert (deltas[-1].finish, deltas[-1].stop) == ("stop", '"days"')


def test_without_tools_to_call_a_call_is_text(engine: Engine) -> None:
    """tool_choice none leaves the tools out of the prompt."""
    without = ask(engine, tools=(), max_tokens=6)

    forbidden = ask(engine, tool_choice=ToolChoice("none"), max_tokens=6)

    assert [d.text for d in forbidden] == [d.text for d in without]


def test_tools_are_told_to_a_model_that_was_taught_none(engine: Engine) -> None:
    """The embedded model's template knows no tools, so they are spelled out."""
    prompts = [
        engine.prepare(Call("c", "m", (Message("user", "hi"),), tools=tools)).prompts[0] for tools in ((), (TOOL,))
    ]

    assert len(prompts[1]) > len(prompts[0]) + 50
