"""A call whose prompt begins like the one before it: tools in one order, lines that tell the time at the end.

Pure. Nothing is added, dropped or reworded; only places change. Refuses to know sessions and caches.
"""

from __future__ import annotations

import re
from dataclasses import replace

from backends.api import Call, Message, Tool

_WORD = re.compile(r"\b(date|time|today|now)\b", re.IGNORECASE)
_MONTH = r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_MOMENT = re.compile(
    rf"\b\d{{4}}-\d{{2}}-\d{{2}}|\b\d{{1,2}}:\d{{2}}\b|\b{_MONTH}\.? \d{{1,2}}\b|\b\d{{1,2}}\.? {_MONTH}\b"
)


def stabilised(call: Call) -> Call:
    """Return the call with its tools and the lines of its system messages where they do not move."""
    tools = tuple(sorted((_ordered(tool) for tool in call.tools), key=lambda tool: tool.name))
    return replace(call, messages=tuple(_settled(each) for each in call.messages), tools=tools)


def tells_time(line: str) -> bool:
    """Whether a line has a date or a time of day, and one of the words date, time, today and now."""
    return bool(_WORD.search(line) and _MOMENT.search(line))


def _settled(message: Message) -> Message:
    if message.role not in {"system", "developer"}:
        return message
    return replace(message, text="\n".join(sorted(message.text.split("\n"), key=tells_time)))


def _ordered(tool: Tool) -> Tool:
    return replace(tool, parameters={key: _sorted(tool.parameters[key]) for key in sorted(tool.parameters)})


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value
