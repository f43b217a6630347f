"""Tools for models whose chat template knows none: tools, calls and results spelled out in plain messages.

Refuses to know templates and tokens. The form is Hermes', which most open models have seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from backends.api import Message, Tool, ToolCall
from backends.engine.toolcalls import HERMES


def tools_prompt(tools: Sequence[Tool]) -> str:
    """Tell the model, in a system message, which tools there are and how to call them."""
    signatures = "\n".join(json.dumps(_signature(tool), ensure_ascii=False) for tool in tools)
    example = _call_text(ToolCall("", "tool-name", '{"argument": "value"}'))
    return (
        "You can call tools. These are the tools, one JSON object a line, with a JSON schema of their parameters:\n"
        f"<tools>\n{signatures}\n</tools>\n"
        f"To call a tool, answer with nothing but this, once for each call:\n{example}\n"
        "Its result comes back inside <tool_response></tool_response>. When no tool is needed, answer in plain text."
    )


def spelled_out(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """Return the same conversation for a template that knows only system, user and assistant texts."""
    plain = tuple(_plain(message) for message in messages)
    if not tools:
        return plain
    if plain and plain[0].role in {"system", "developer"}:
        first = replace(plain[0], text=f"{plain[0].text}\n\n{tools_prompt(tools)}".lstrip())
        return (first, *plain[1:])
    return (Message("system", tools_prompt(tools)), *plain)


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.text}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = HERMES.between.join(_call_text(call) for call in message.tool_calls)
    return Message("assistant", f"{message.text}\n{calls}".lstrip(), name=message.name)


def _call_text(call: ToolCall) -> str:
    return f"{HERMES.begin}{call.name}{HERMES.middle}{call.arguments}{HERMES.end}"


def _signature(tool: Tool) -> dict[str, object]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
