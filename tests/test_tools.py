"""Tools, tool choice and answer format in each dialect's spelling: read alike, and refused by path."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, ResponseFormat, Tool, ToolChoice
from backends.frames import FrameReader, encode, pack_call, unpack_call
from gateway.dialects.fields import Fields
from gateway.dialects.tools import (
    ToolUse,
    chat_format,
    chat_tools,
    messages_format,
    messages_tools,
    responses_format,
    responses_tools,
)
from gateway.refusal import Refusal

SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = Tool("get_weather", "Tell it.", SCHEMA)
FLAT = {"name": "get_weather", "description": "Tell it.", "parameters": SCHEMA}
CHAT = {"type": "function", "function": FLAT}
RESPONSES = {"type": "function", **FLAT}
MESSAGES = {"name": "get_weather", "description": "Tell it.", "input_schema": SCHEMA}
Body = dict[str, object]
Read = Callable[[Fields], ToolUse]


def nested(levels: int) -> Body:
    """Give a schema of this depth."""
    schema: Body = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("read", "tool"), [(chat_tools, CHAT), (responses_tools, RESPONSES), (messages_tools, MESSAGES)]
)
def test_each_dialect_spells_the_same_tool(read: Read, tool: Body) -> None:
    """Nested, flat and Anthropic's form give the same tool, which may be called and need not be."""
    assert read(Fields({"tools": [tool]}, "")) == ToolUse((WEATHER,), ToolChoice(), parallel=True)


@pytest.mark.parametrize("read", [chat_tools, responses_tools, messages_tools])
def test_no_tools_is_the_default(read: Read) -> None:
    """A body without tools, or with null, asks for none."""
    assert read(Fields({}, "")) == read(Fields({"tools": None, "tool_choice": None}, "")) == ToolUse()


NAMED = ToolChoice("required", "get_weather")
CHOICES: list[tuple[Read, Body, object, ToolChoice]] = [
    (chat_tools, CHAT, "auto", ToolChoice()),
    (chat_tools, CHAT, "none", ToolChoice("none")),
    (chat_tools, CHAT, "required", ToolChoice("required")),
    (chat_tools, CHAT, {"type": "function", "function": {"name": "get_weather"}}, NAMED),
    (responses_tools, RESPONSES, "required", ToolChoice("required")),
    (responses_tools, RESPONSES, {"type": "function", "name": "get_weather"}, NAMED),
    (messages_tools, MESSAGES, {"type": "auto"}, ToolChoice()),
    (messages_tools, MESSAGES, {"type": "any"}, ToolChoice("required")),
    (messages_tools, MESSAGES, {"type": "none"}, ToolChoice("none")),
    (messages_tools, MESSAGES, {"type": "tool", "name": "get_weather"}, NAMED),
]


@pytest.mark.parametrize(("read", "tool", "choice", "meant"), CHOICES)
def test_each_dialect_spells_the_tool_choice(read: Read, tool: Body, choice: object, meant: ToolChoice) -> None:
    """Auto, none, required and a name mean the same everywhere."""
    assert read(Fields({"tools": [tool], "tool_choice": choice}, "")).choice == meant


ALLOWED: list[tuple[Read, list[Body], Body]] = [
    (
        chat_tools,
        [CHAT, {"type": "function", "function": {"name": "now"}}],
        {"allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}},
    ),
    (
        responses_tools,
        [RESPONSES, {"type": "function", "name": "now"}],
        {"mode": "required", "tools": [{"type": "function", "name": "now"}]},
    ),
]


@pytest.mark.parametrize(("read", "tools", "allowed"), ALLOWED)
def test_allowed_tools_leave_the_others_out(read: Read, tools: list[Body], allowed: Body) -> None:
    """Only the tools that are named can be called, in either spelling of the list."""
    use = read(Fields({"tools": tools, "tool_choice": {"type": "allowed_tools", **allowed}}, ""))

    assert use == ToolUse((Tool("now"),), ToolChoice("required"), parallel=True)


def test_parallel_calls_can_be_switched_off_in_each_dialect() -> None:
    """OpenAI has a field for it, Anthropic a member of tool_choice."""
    messages = {"type": "auto", "disable_parallel_tool_use": True}

    assert not chat_tools(Fields({"tools": [CHAT], "parallel_tool_calls": False}, "")).parallel
    assert not messages_tools(Fields({"tools": [MESSAGES], "tool_choice": messages}, "")).parallel


def test_strict_is_kept() -> None:
    """A strict tool's arguments will be enforced."""
    (tool,) = chat_tools(Fields({"tools": [{"type": "function", "function": {**FLAT, "strict": True}}]}, "")).tools

    assert tool.strict


def chat_with(**function: object) -> Body:
    """Give a chat body whose second tool is this one."""
    return {"tools": [CHAT, {"type": "function", "function": {"name": "now", **function}}]}


REFUSED: list[tuple[Read, Body, str]] = [
    (chat_tools, {"tools": {}}, "tools"),
    (chat_tools, {"tools": ["now"]}, "tools[0]"),
    (chat_tools, {"tools": [{"function": FLAT}]}, "tools[0].type"),
    (chat_tools, {"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
    (chat_tools, {"tools": [{"type": "function"}]}, "tools[0].function"),
    (chat_tools, {"tools": [CHAT, CHAT]}, "tools[1]"),
    (chat_tools, {"tools": [CHAT] * 1025}, "tools"),
    (chat_tools, chat_with(name=None), "tools[1].function.name"),
    (chat_tools, chat_with(name="a b"), "tools[1].function.name"),
    (chat_tools, chat_with(name="x" * 129), "tools[1].function.name"),
    (chat_tools, chat_with(name="now\n"), "tools[1].function.name"),
    (chat_tools, chat_with(description=3), "tools[1].function.description"),
    (chat_tools, chat_with(parameters=[]), "tools[1].function.parameters"),
    (chat_tools, chat_with(parameters={"type": "string"}), "tools[1].function.parameters.type"),
    (chat_tools, chat_with(parameters=nested(40)), "tools[1].function.parameters"),
    (chat_tools, chat_with(strict="yes"), "tools[1].function.strict"),
    (chat_tools, {"tool_choice": "required"}, "tool_choice"),
    (chat_tools, {"tools": [CHAT], "tool_choice": "any"}, "tool_choice"),
    (chat_tools, {"tools": [CHAT], "tool_choice": 1}, "tool_choice"),
    (
        chat_tools,
        {"tools": [CHAT], "tool_choice": {"type": "function", "function": {"name": "rm"}}},
        "tool_choice.function.name",
    ),
    (responses_tools, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
    (responses_tools, {"tools": [RESPONSES], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    (messages_tools, {"tools": [{"name": "now"}]}, "tools[0].input_schema"),
    (messages_tools, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    (messages_tools, {"tool_choice": {"type": "any"}}, "tool_choice"),
    (messages_tools, {"tools": [MESSAGES], "tool_choice": {"type": "tool", "name": "rm"}}, "tool_choice.name"),
]


@pytest.mark.parametrize(("read", "body", "param"), REFUSED)
def test_a_mistake_is_refused_by_its_path(read: Read, body: Body, param: str) -> None:
    """The 400 names the field that is wrong, in the caller's own spelling."""
    with pytest.raises(Refusal) as refused:
        read(Fields(body, ""))

    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.message.startswith(param)


SCHEMA_FORMAT = ResponseFormat("json_schema", schema=SCHEMA, strict=True)
NAMED_SCHEMA = {"name": "weather", "schema": SCHEMA, "strict": True}
LOOSE_SCHEMA = ResponseFormat("json_schema", schema=SCHEMA)
FORMATS: list[tuple[Callable[[Fields], ResponseFormat], Body, ResponseFormat]] = [
    (chat_format, {}, ResponseFormat()),
    (chat_format, {"response_format": {"type": "text"}}, ResponseFormat()),
    (chat_format, {"response_format": {"type": "json_object"}}, ResponseFormat("json_object")),
    (chat_format, {"response_format": {"type": "json_schema", "json_schema": NAMED_SCHEMA}}, SCHEMA_FORMAT),
    (chat_format, {"structured_outputs": {"json": SCHEMA}}, LOOSE_SCHEMA),
    (chat_format, {"guided_regex": "[a-z]+"}, ResponseFormat("regex", pattern="[a-z]+")),
    (chat_format, {"guided_choice": ["a", "b"]}, ResponseFormat("choice", choices=("a", "b"))),
    (chat_format, {"structured_outputs": {"grammar": "start: /a/"}}, ResponseFormat("lark", pattern="start: /a/")),
    (responses_format, {}, ResponseFormat()),
    (responses_format, {"text": {"format": {"type": "json_object"}}}, ResponseFormat("json_object")),
    (responses_format, {"text": {"format": {"type": "json_schema", **NAMED_SCHEMA}}}, SCHEMA_FORMAT),
    (messages_format, {}, ResponseFormat()),
    (messages_format, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, LOOSE_SCHEMA),
    (messages_format, {"output_format": {"type": "json_schema", "schema": SCHEMA}}, LOOSE_SCHEMA),
]


@pytest.mark.parametrize(("read", "body", "meant"), FORMATS)
def test_each_dialect_spells_the_format(
    read: Callable[[Fields], ResponseFormat], body: Body, meant: ResponseFormat
) -> None:
    """A schema, JSON, a regex, a choice and a grammar are read from wherever clients put them."""
    assert read(Fields(body, "")) == meant


FORMATS_REFUSED: list[tuple[Body, str]] = [
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, "response_format.json_schema.schema"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"guided_choice": ["a", 1]}, "guided_choice[1]"),
    ({"guided_regex": "a" * 65_537}, "guided_regex"),
]


@pytest.mark.parametrize(("body", "param"), FORMATS_REFUSED)
def test_a_wrong_format_is_refused_by_its_path(body: Body, param: str) -> None:
    """The 400 names the field that is wrong."""
    with pytest.raises(Refusal) as refused:
        chat_format(Fields(body, ""))

    assert refused.value.param == param


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = st.sampled_from(["type", "function", "name", "parameters", "strict", "input_schema", "description"])
TOOL_BODIES = st.lists(st.dictionaries(MEMBERS, JSON_VALUES | st.just("function") | st.just(FLAT)), max_size=3)


@given(st.sampled_from([chat_tools, responses_tools, messages_tools]), TOOL_BODIES | JSON_VALUES, JSON_VALUES)
def test_any_json_is_read_or_refused(read: Read, tools: object, choice: object) -> None:
    """No body makes the parser fail in any other way than by a refusal."""
    with suppress(Refusal):
        use = read(Fields({"tools": tools, "tool_choice": choice}, ""))
        assert len({tool.name for tool in use.tools}) == len(use.tools)


def test_tools_and_formats_cross_the_local_wire() -> None:
    """A worker sees the same tools, choice and schema, as deep as they are allowed to be."""
    deep = Tool("deep", parameters=nested(30))
    call = Call("c", "m", tools=(WEATHER, deep), tool_choice=NAMED, response_format=SCHEMA_FORMAT)

    [[_, wire]] = FrameReader(1 << 20).feed(encode("submit", pack_call(call)))

    assert unpack_call(wire) == call
