"""How long newcomers wait for the blocks of others to be saved: while saving gets on, and a moment longer.

Refuses to know blocks and clocks.
"""

from __future__ import annotations

LONGEST_S = 5.0  # without any progress; then unsaved blocks are taken until there is some again


class Patience:
    """Runs out when somebody is short of blocks for LONGEST_S and none are let go meanwhile."""

    def __init__(self) -> None:
        self._progress = 0
        self._since: float | None = None

    def lasts(self, progress: int, now: float) -> bool:
        """Say whether to wait, given how far saving has come."""
        if progress != self._progress:
            self._progress, self._since = progress, None
        return self._since is None or now - self._since < LONGEST_S

    def note(self, now: float, *, is_short: bool) -> None:
        """Remember since when somebody waits."""
        if is_short and self._since is None:
            self._since = now
