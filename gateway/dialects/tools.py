"""Tools, tool choice and answer format of a request body, in the spellings of the three dialects, into our types.

Pure. Refuses to know how a model writes a call and how a format is enforced; a schema is looked at only as far as
its mistakes can be named by path: what cannot be enforced is found out when the grammar is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from backends.api import ResponseFormat, Tool, ToolChoice
from gateway.dialects.fields import Fields, as_text, quoted, refusal
from gateway.refusal import Refusal

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_MAX_TOOLS = 1024
_MAX_CHOICES = 4096
_MAX_PATTERN = 65_536
_MAX_DEPTH = 64

_AUTO = ToolChoice()
_MODES: tuple[Literal["auto", "none", "required"], ...] = ("auto", "none", "required")
_ALLOWED_MODES: tuple[Literal["auto", "required"], ...] = ("auto", "required")
_FORMATS: tuple[Literal["text", "json_object", "json_schema"], ...] = ("text", "json_object", "json_schema")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a call, whether one must be called, and whether several may be at once."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = _AUTO
    parallel: bool = True


def chat_tools(fields: Fields) -> ToolUse:
    """Read `tools`, `tool_choice` and `parallel_tool_calls` of a chat completion."""
    tools = _tools(fields, _nested_tool)
    return _openai(fields, tools, name_in=lambda choice: choice.child("function"))


def responses_tools(fields: Fields) -> ToolUse:
    """Read the same of a response, whose tools are flat."""
    return _openai(fields, _tools(fields, _flat_tool), name_in=lambda choice: choice)


def messages_tools(fields: Fields) -> ToolUse:
    """Read Anthropic's `tools` and `tool_choice`."""
    tools = _tools(fields, _anthropic_tool)
    choice = fields.child("tool_choice")
    parallel = not choice.flag("disable_parallel_tool_use")
    kind = choice.choice("type", ("auto", "any", "tool", "none")) if choice.has("type") else "auto"
    if kind == "tool":
        return ToolUse(tools, ToolChoice("required", _known(tools, choice, "name")), parallel)
    modes = {"auto": _AUTO, "any": ToolChoice("required"), "none": ToolChoice("none")}
    return _checked(ToolUse(tools, modes[kind], parallel), choice.path)


def chat_format(fields: Fields) -> ResponseFormat:
    """Read `response_format`, or the ways in which vLLM's clients ask for more."""
    given = fields.child("response_format")
    kind = given.choice("type", _FORMATS) if given.has("type") else "text"
    if kind != "text":
        return ResponseFormat(kind) if kind == "json_object" else _schema_format(given.child("json_schema"))
    asked = list(_constraints(fields))
    if len(asked) > 1:
        raise refusal("structured_outputs", f"asks for {' and '.join(form.kind for form in asked)}; give one")
    return asked[0] if asked else ResponseFormat()


def responses_format(fields: Fields) -> ResponseFormat:
    """Read `text.format` of a response."""
    return _flat_format(fields.child("text").child("format"))


def messages_format(fields: Fields) -> ResponseFormat:
    """Read Anthropic's `output_config.format`, or `output_format` as its beta called it."""
    config = fields.child("output_config").child("format")
    return _flat_format(config if config.has("type") else fields.child("output_format"))


def _tools(fields: Fields, read: Callable[[Fields], Tool]) -> tuple[Tool, ...]:
    places = fields.objects("tools", longest=_MAX_TOOLS)
    tools: dict[str, Tool] = {}
    for place in places:
        tool = read(place)
        if tool.name in tools:
            raise refusal(place.path, f"is a second tool named {quoted(tool.name)}; names must differ")
        tools[tool.name] = tool
    return tuple(tools.values())


def _nested_tool(place: Fields) -> Tool:
    _function_only(place)
    place.require("function")
    return _tool(place.child("function"), schema="parameters")


def _flat_tool(place: Fields) -> Tool:
    _function_only(place)
    return _tool(place, schema="parameters")


def _anthropic_tool(place: Fields) -> Tool:
    if place.has("type") and place.values["type"] != "custom":
        raise _not_ours(place, "custom")
    place.require("input_schema")
    return _tool(place, schema="input_schema")


def _function_only(place: Fields) -> None:
    place.require("type")
    if place.values["type"] != "function":
        raise _not_ours(place, "function")


def _not_ours(place: Fields, ours: str) -> Refusal:
    given = quoted(place.values["type"])
    return refusal(
        place.path_of("type"),
        f"is {given}; only tools of the type {ours}, which your program runs, are offered here",
        code="unsupported_value",
    )


def _tool(fields: Fields, *, schema: str) -> Tool:
    name = fields.required_text("name")
    if not _NAME.fullmatch(name):
        path = fields.path_of("name")
        raise refusal(path, f"is {quoted(name)}; 1 to 128 letters, digits, _, - and . are allowed")
    return Tool(name, fields.text("description", ""), _parameters(fields, schema), fields.flag("strict"))


def _parameters(fields: Fields, name: str) -> Mapping[str, object]:
    schema = _schema(fields, name)
    if schema.get("type", "object") != "object":
        path = f"{fields.path_of(name)}.type"
        raise refusal(path, f'is {quoted(schema["type"])}; arguments are an object, so it must be "object"')
    return schema


def _schema(fields: Fields, name: str) -> Mapping[str, object]:
    """Return a JSON schema, shallow enough for every parser on its way."""
    schema = fields.child(name)
    level: list[object] = [schema.values]
    for _ in range(_MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
    if level:
        raise refusal(schema.path, f"is nested deeper than {_MAX_DEPTH} levels")
    return schema.values


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _openai(fields: Fields, tools: tuple[Tool, ...], *, name_in: Callable[[Fields], Fields]) -> ToolUse:
    parallel = fields.flag("parallel_tool_calls", default=True)
    given = fields.values.get("tool_choice")
    if given is None or isinstance(given, str):
        mode = "auto" if given is None else fields.choice("tool_choice", _MODES)
        return _checked(ToolUse(tools, ToolChoice(mode), parallel), "tool_choice")
    choice = fields.child("tool_choice")
    if choice.choice("type", ("function", "allowed_tools")) == "function":
        return ToolUse(tools, ToolChoice("required", _known(tools, name_in(choice), "name")), parallel)
    return _checked(_allowed(choice, tools, parallel=parallel, name_in=name_in), choice.path)


def _allowed(
    choice: Fields, tools: tuple[Tool, ...], *, parallel: bool, name_in: Callable[[Fields], Fields]
) -> ToolUse:
    """Keep the tools that `allowed_tools` names; chat completions wrap it once more."""
    allowed = choice.child("allowed_tools") if choice.has("allowed_tools") else choice
    mode = allowed.choice("mode", _ALLOWED_MODES)
    places = allowed.objects("tools", longest=_MAX_TOOLS)
    names = {_known(tools, name_in(place), "name") for place in places}
    return ToolUse(tuple(tool for tool in tools if tool.name in names), ToolChoice(mode), parallel)


def _known(tools: tuple[Tool, ...], place: Fields, name: str) -> str:
    given = place.required_text(name)
    if given not in {tool.name for tool in tools}:
        raise refusal(place.path_of(name), f"is {quoted(given)}, which is not among the tools")
    return given


def _checked(use: ToolUse, path: str) -> ToolUse:
    if use.choice.mode == "required" and not use.tools:
        raise refusal(path, "requires a tool to be called, and there are no tools")
    return use


def _flat_format(given: Fields) -> ResponseFormat:
    kind = given.choice("type", _FORMATS) if given.has("type") else "text"
    return _schema_format(given) if kind == "json_schema" else ResponseFormat(kind)


def _schema_format(place: Fields) -> ResponseFormat:
    place.require("schema")
    return ResponseFormat("json_schema", schema=_schema(place, "schema"), strict=place.flag("strict"))


def _constraints(fields: Fields) -> Iterable[ResponseFormat]:
    """Return what `structured_outputs` and the older `guided_*` fields ask for."""
    outputs = fields.child("structured_outputs")
    for place, prefix in ((outputs, ""), (fields, "guided_")):
        if place.has(f"{prefix}json"):
            yield ResponseFormat("json_schema", schema=_schema(place, f"{prefix}json"))
        if place.has(f"{prefix}regex"):
            yield ResponseFormat("regex", pattern=_pattern(place, f"{prefix}regex"))
        if place.has(f"{prefix}grammar"):
            yield ResponseFormat("lark", pattern=_pattern(place, f"{prefix}grammar"))
        if place.has(f"{prefix}choice"):
            yield ResponseFormat("choice", choices=_choices(place, f"{prefix}choice"))


def _pattern(place: Fields, name: str) -> str:
    pattern = place.required_text(name)
    if len(pattern) > _MAX_PATTERN:
        raise refusal(place.path_of(name), f"has {len(pattern)} characters; at most {_MAX_PATTERN} are allowed")
    return pattern


def _choices(place: Fields, name: str) -> tuple[str, ...]:
    items = place.array(name, longest=_MAX_CHOICES)
    choices = tuple(as_text(item, f"{place.path_of(name)}[{i}]") for i, item in enumerate(items))
    if not choices or "" in choices:
        raise refusal(place.path_of(name), "must be texts to choose from, none of them empty")
    return choices
