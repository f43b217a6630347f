"""What a call allows its answers to be, as the text of a grammar in llguidance's Lark dialect.

Pure; refuses to know tokens, vocabularies and how a grammar is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.api import Call, ResponseFormat, Tool
from backends.engine.toolcalls import Syntax

MAX_FORCED_CALLS = 8  # a small model that must call would go on until its token limit

# Space is bounded: a small model that may write any amount of it often does nothing else.
_JSON_SPACE = {"whitespace_pattern": r"[ \n\t]{0,16}"}
_CALL_SPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_OBJECT = {"type": "object"}
_COMBINED = frozenset({"allOf", "anyOf", "oneOf", "$ref", "patternProperties"})
_PARAMS: Mapping[str, str] = {
    "json_object": "response_format",
    "json_schema": "response_format.json_schema.schema",
    "regex": "structured_outputs.regex",
    "choice": "structured_outputs.choice",
    "lark": "structured_outputs.grammar",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A grammar's text, and the field of the call to blame when it does not compile.

    An `optional` one only helps the model; without it the answer is as good as the model makes it.
    """

    lark: str
    param: str
    optional: bool = False


def source_of(call: Call, syntax: Syntax) -> Source | None:
    """Return what binds the answers of `call`; None when the model may write anything."""
    answer, mode = call.response_format, call.tool_choice.mode
    if not call.tools or mode == "none":
        return None if answer.kind == "text" else Source(_answer(answer), _PARAMS[answer.kind])
    most = MAX_FORCED_CALLS if call.parallel_tool_calls and call.tool_choice.name is None else 1
    if mode == "required":
        named = [tool for tool in call.tools if call.tool_choice.name in {None, tool.name}]
        return Source("start: calls\n" + _calls(named, syntax, most=most), "tools")
    match answer.kind:
        case "text":
            return _triggered(call.tools, syntax)
        case "lark":
            return Source(answer.pattern, _PARAMS[answer.kind])
        case _:
            calls = _calls(call.tools, syntax, most=most)
            return Source(f"start: calls | answer\n{calls}answer: {_body(answer)}\n", _PARAMS[answer.kind])


def _answer(answer: ResponseFormat) -> str:
    return answer.pattern if answer.kind == "lark" else f"start: {_body(answer)}\n"


def _body(answer: ResponseFormat) -> str:
    match answer.kind:
        case "json_object":
            return _json(_ANY_OBJECT, _JSON_SPACE)
        case "json_schema":
            return _json(answer.schema, {**_JSON_SPACE, "lenient": not answer.strict})
        case "regex":
            import llguidance  # noqa: PLC0415 - 60 ms that a worker's start need not wait for

            return f"/{llguidance.regex_to_lark(answer.pattern)}/"
        case "choice":
            return " | ".join(_literal(choice) for choice in answer.choices)
        case "text" | "lark":
            raise AssertionError(f"a {answer.kind} answer has no body")


def _json(schema: Mapping[str, object], options: Mapping[str, object]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _calls(tools: Sequence[Tool], syntax: Syntax, *, most: int) -> str:
    """Write the rule for one to `most` calls of any of the tools, exactly as the model's family writes them."""
    more = f" ({_literal(syntax.between)} call){{0,{most - 1}}}" if most > 1 else ""
    return f"calls: call{more}\ncall: {_one_call(tools, syntax, written='')}\n"


def _one_call(tools: Sequence[Tool], syntax: Syntax, *, written: str) -> str:
    """Any of the tools' calls, less the part of it that is already `written`."""
    begin = syntax.begin.removeprefix(written)
    return " | ".join(
        f"{_literal(begin + tool.name + syntax.middle)} {_arguments(tool)} {_literal(syntax.end)}" for tool in tools
    )


def _arguments(tool: Tool) -> str:
    """Arguments no function asked for are of no use: an object that doesn't speak of others allows none."""
    closed = {} if _COMBINED & tool.parameters.keys() else {"additionalProperties": False}
    return _json({"type": "object", **closed, **tool.parameters}, {**_CALL_SPACE, "lenient": not tool.strict})


def _triggered(tools: Sequence[Tool], syntax: Syntax) -> Source | None:
    """Free text in which the syntax's trigger must be followed by a whole call."""
    if not syntax.trigger:
        return None
    call = _one_call(tools, syntax, written=syntax.trigger)
    lark = (
        "start: (opened call)* rest\n"
        f"opened[lazy]: FREE {_literal(syntax.trigger)}\n"
        f"call: {call}\n"
        "rest: FREE\n"
        "FREE: /(.|\\n)*/\n"
    )
    return Source(lark, "tools", optional=not any(tool.strict for tool in tools))
