"""What was done about sessions since the worker's start, added up. Lives on the loop's thread."""

from __future__ import annotations

from dataclasses import replace

from backends.api import SessionCounts


class Tally:
    """One count for all who restore, save and recheck."""

    def __init__(self) -> None:
        self.counts = SessionCounts()

    def add(self, **more: float) -> None:
        """Add to counts by their names."""
        before = self.counts
        self.counts = replace(before, **{name: getattr(before, name) + value for name, value in more.items()})
