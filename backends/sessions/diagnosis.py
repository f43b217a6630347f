"""Why a prompt was not known: where it parts from the last one of its session, as a message and a character in it.

Refuses to know blocks and stores. Last prompts are kept as tokens, bounded by bytes; the oldest is forgotten.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence

from backends.api import Call, Message
from backends.engine.transcript import session_of

MOST_BYTES = 16 << 20

Spell = Callable[[list[int]], str]


class Diagnosis:
    """The last prompt of each session. Used from one thread."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._last: OrderedDict[tuple[str, str], array[int]] = OrderedDict()

    def compare(self, call: Call, prompt: Sequence[int], spell: Spell) -> tuple[int, int] | None:
        """Return where a chat parts from its session's last prompt and remember it; None where it goes on from it."""
        session = session_of(call)
        if session is None or not call.messages:
            return None
        words = array("I", prompt)
        before = self._swap((call.tenant, session), words)
        same = common(before, words)
        if same == len(before):
            return None
        return place(call.messages, spell(list(words)), len(spell(list(words[:same])).rstrip("\ufffd")))

    def _swap(self, key: tuple[str, str], words: array[int]) -> array[int]:
        before = self._last.pop(key, array("I"))
        self._last[key] = words
        self._bytes += 4 * (len(words) - len(before))
        while self._bytes > self._most_bytes and len(self._last) > 1:
            self._bytes -= 4 * len(self._last.popitem(last=False)[1])
        return before


def common(one: array[int], other: array[int]) -> int:
    """Count the tokens that two prompts begin with alike."""
    most = min(len(one), len(other))
    return bisect_left(range(1, most + 1), 1, key=lambda count: one[:count] != other[:count])


def place(messages: Sequence[Message], rendered: str, at: int) -> tuple[int, int]:
    """Say in which message the character `at` of the rendered prompt is, and where in its text.

    What is between two texts belongs to the later one's beginning.
    """
    end = 0
    for index, message in enumerate(messages):
        text = message.text.strip()
        start = rendered.find(text, end)
        if start < 0:
            continue
        end = start + len(text)
        if at < end or index == len(messages) - 1:
            lead = len(message.text) - len(message.text.lstrip())
            return index, min(max(0, at - start) + (lead if at > start else 0), len(message.text))
    return len(messages) - 1, len(messages[-1].text)
