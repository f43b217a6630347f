"""Chat templates: messages and tools to the one text a model was trained on. Refuses to know tokens.

Templates come with checkpoints, so they are a stranger's program: they run in jinja2's immutable sandbox.
"""

from __future__ import annotations

import datetime as dt
import json
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import orjson
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.api import Message, Tool
from backends.engine.problems import TemplateError

FILE = "<template>"  # the name jinja2 gives a template made from a text, in tracebacks too

_THINKING = ("enable_thinking", "thinking")  # Qwen's name for it, and DeepSeek's and Granite's


class ChatTemplate:
    """A checkpoint's template, compiled once."""

    def __init__(self, source: str, specials: dict[str, str]) -> None:
        """`specials` are the names templates may use: bos_token, eos_token, …."""
        self._specials = specials
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as exc:
            raise TemplateError(f"chat template, line {exc.lineno}: {exc.message}") from exc

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, thinking: bool | None = None) -> str:
        """Return the prompt up to where the assistant speaks; raises TemplateError when the template refuses."""
        wish = {} if thinking is None else dict.fromkeys(_THINKING, thinking)
        try:
            return self._template.render(
                messages=[_as_dict(message) for message in messages],
                tools=[_tool(tool) for tool in tools] or None,
                add_generation_prompt=True,
                **wish,
                **self._specials,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as exc:
            raise TemplateError(f"chat template, line {_line(exc)}: {exc}") from exc


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """jinja2's own escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)


def _line(exc: Exception) -> int:
    """Return the template's own line: jinja2 rewrites its frames to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == FILE]
    return (lines and lines[-1]) or 0


def _as_dict(message: Message) -> dict[str, Any]:
    """Return the shape that templates expect; few know the developer role, so it speaks as system."""
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.text,
    }
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return turn


def _arguments(text: str) -> Any:
    """Templates print arguments with tojson, so they want the object; what is not JSON stays text."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
