"""What a model thinks before it answers, as text between tags, told apart from the answer while both are written.

Refuses to know tokens and templates. Only what an answer begins with can be a thought: a tag further on is text, as in
an answer about tags. Space around thoughts belongs to nobody. Every decision depends on the text alone, never on where
it was split.
"""

from __future__ import annotations

from typing import Literal

OPEN, CLOSE = "<think>", "</think>"


class ThoughtParser:
    """Splits one answer, given in any pieces, into thoughts and what follows them.

    `is_open` says that the prompt ends with the opening tag, as some templates write it. Once it `is_over`, everything
    is answer.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self._is_open = is_open
        self._place: Literal["before", "inside", "behind", "over"] = "before"
        self._held = ""
        self._has_begun = False

    @property
    def is_thinking(self) -> bool:
        """Whether the last of what was given belongs to thoughts or to their tags."""
        return self._place in {"inside", "behind"}

    @property
    def is_over(self) -> bool:
        """Whether no thought can follow."""
        return self._place == "over"

    def push(self, text: str) -> tuple[str, str]:
        """Take the next piece; return what of it is thought and what is answer. A possible tag is held back."""
        self._held += text
        if self._place == "before":
            self._enter()
        thought = self._think() if self._place == "inside" else ""
        return thought, self._answer()

    def finish(self) -> tuple[str, str]:
        """Take the end; thoughts that were never closed stay thoughts."""
        held, self._held = self._held, ""
        is_thought = self._place == "inside" or (self._place == "before" and self._is_open)
        return (held, "") if is_thought else ("", held)

    def _enter(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):  # some models open what the prompt has opened already
            self._place, self._held = "inside", begun[len(OPEN) :]
        elif not OPEN.startswith(begun):
            self._place = "inside" if self._is_open else "over"

    def _think(self) -> str:
        if not self._has_begun:
            self._held = self._held.lstrip()
        thought, tag, rest = self._held.partition(CLOSE)
        if tag:
            self._place, self._held = "behind", rest
            return thought.rstrip()
        certain = len(self._held[: len(self._held) - _tag_begun(self._held)].rstrip())
        thought, self._held = self._held[:certain], self._held[certain:]
        self._has_begun |= bool(thought)
        return thought

    def _answer(self) -> str:
        if self._place == "behind" and (begun := self._held.lstrip()):
            self._place, self._held = "over", begun
        if self._place != "over":
            return ""
        text, self._held = self._held, ""
        return text


def _tag_begun(text: str) -> int:
    """How many characters at the end begin the closing tag."""
    longest = min(len(text), len(CLOSE) - 1)
    return next((n for n in range(longest, 0, -1) if CLOSE.startswith(text[-n:])), 0)
