"""Neighbouring messages of one speaker as one turn, because chat templates expect the speakers to alternate.

Refuses to know any API's spelling of a message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from backends.api import Message, Role


def joined(messages: Iterable[Message], *, roles: frozenset[Role]) -> tuple[Message, ...]:
    """Join neighbours of the same role, if it is one of `roles`: their texts by lines, their tool calls in order."""
    turns: list[Message] = []
    for message in messages:
        if turns and message.role in roles and message.role == turns[-1].role:
            turns[-1] = _one(turns[-1], message)
        else:
            turns.append(message)
    return tuple(turns)


def _one(first: Message, second: Message) -> Message:
    text = "\n".join(text for text in (first.text, second.text) if text)
    return replace(first, text=text, tool_calls=first.tool_calls + second.tool_calls)
