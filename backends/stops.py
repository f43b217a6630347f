"""Stop strings over text that comes in pieces: no part of a stop string is ever let through.

The stop string that is complete first ends the text, the longest of those that end together; so the outcome does not
depend on how the text was split. Refuses to know tokens.
"""

from __future__ import annotations


class StopText:
    """Text goes in by pieces and comes out as soon as it cannot be the beginning of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit: str | None = None

    @property
    def is_hit(self) -> bool:
        """Whether a stop string has ended the text; `hit` is which."""
        return self.hit is not None

    @property
    def held(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def push(self, text: str) -> str:
        """Take a piece; return what can be shown. After a hit nothing comes out any more."""
        if not self._stops:
            return text
        if self.is_hit or not text:
            return ""
        self._held += text
        if found := [(start + len(stop), start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0]:
            _, start, self.hit = min(found)
            return self._show(start)
        return self._show(len(self._held) - self._beginning())

    def flush(self) -> str:
        """Return what was held back, as no more text will come."""
        shown = "" if self.is_hit else self._held
        self._held = ""
        return shown

    def _show(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _beginning(self) -> int:
        """How many characters at the end begin a stop string."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        return next((n for n in range(longest, 0, -1) if self._is_beginning(self._held[-n:])), 0)

    def _is_beginning(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
