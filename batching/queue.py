"""The bounded line of those who wait for a place, first come first served.

Refuses to know what waits in it, and time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Queue(Generic[Item]):
    """A line with a bound that new arrivals meet; whoever already had a place comes back to its front regardless."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._line: OrderedDict[Item, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, item: object) -> bool:
        return item in self._line

    def is_full(self, *, places: int) -> bool:
        """Whether a newcomer is to be refused, when `places` of those in line can leave it at once."""
        return len(self._line) - places >= self.bound

    def join(self, item: Item) -> None:
        """Stand at the end. Ask `is_full` first: who comes with others may pass the bound together with them."""
        self._line[item] = None

    def rejoin(self, item: Item) -> None:
        """Stand at the front again after having had a place."""
        self._line[item] = None
        self._line.move_to_end(item, last=False)

    def first(self) -> Item | None:
        """Return who is next, without taking anyone out."""
        return next(iter(self._line), None)

    def leave(self, item: Item) -> None:
        """Take one out, wherever it stands; one who is not in line is fine."""
        self._line.pop(item, None)
