"""Which scheme each unit gets so that the model's loss is least for its bytes. Pure; refuses to know matrices.

A Lagrangian price on bytes picks, in every unit, a corner of the lower convex hull of its choices. Walking all hulls at
once from the cheapest corner, steepest step first, visits the picks of every price: one sort is the whole frontier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from backends.engine.quant import Scheme


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to round a unit: what it stores and the loss, in nats a token, that it is expected to cost."""

    scheme: Scheme
    nbytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for every unit."""

    choices: Mapping[str, Choice]

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(choice.nbytes for choice in self.choices.values())

    @property
    def loss(self) -> float:
        """Expected loss; second-order effects of units are taken to add up."""
        return sum(choice.loss for choice in self.choices.values())

    @property
    def schemes(self) -> dict[str, Scheme]:
        """The scheme of every unit."""
        return {unit: choice.scheme for unit, choice in self.choices.items()}

    def with_choice(self, unit: str, choice: Choice) -> Self:
        """Return the same allocation with one unit changed."""
        return type(self)({**self.choices, unit: choice})


def frontier(options: Mapping[str, Sequence[Choice]]) -> Iterator[Allocation]:
    """Yield every allocation that some price on bytes picks, from the smallest to the best."""
    hulls = {unit: hull(choices) for unit, choices in options.items()}
    picks = Allocation({unit: corners[0] for unit, corners in hulls.items()})
    yield picks
    steps = [(slope(*pair), unit, pair[1]) for unit, corners in hulls.items() for pair in pairwise(corners)]
    for _, unit, choice in sorted(steps, key=lambda step: (step[0], step[1])):
        picks = picks.with_choice(unit, choice)
        yield picks


def allocate(options: Mapping[str, Sequence[Choice]], budget_bytes: int) -> Allocation | None:
    """Pick the best of the frontier within the budget, then spend what is left; None when nothing fits."""
    best: Allocation | None = None
    for picks in frontier(options):
        if picks.nbytes > budget_bytes:
            break
        best = picks
    return None if best is None else _spend(best, options, budget_bytes)


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """Keep the corners of the lower convex hull, from the smallest to the most exact."""
    corners: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.nbytes, choice.loss)):
        if corners and choice.loss >= corners[-1].loss:
            continue
        while len(corners) > 1 and slope(corners[-2], corners[-1]) >= slope(corners[-1], choice):
            corners.pop()
        if corners and choice.nbytes == corners[-1].nbytes:
            continue
        corners.append(choice)
    return corners


def slope(smaller: Choice, larger: Choice) -> float:
    """Loss gained (negative) a byte."""
    return (larger.loss - smaller.loss) / (larger.nbytes - smaller.nbytes)


def _spend(picks: Allocation, options: Mapping[str, Sequence[Choice]], budget_bytes: int) -> Allocation:
    """Use bytes that no step of the frontier fits into, for whatever still gains most."""
    while True:
        room = budget_bytes - picks.nbytes
        better = [
            (choice.loss - picks.choices[unit].loss, unit, choice)
            for unit, choices in options.items()
            for choice in choices
            if choice.loss < picks.choices[unit].loss and choice.nbytes - picks.choices[unit].nbytes <= room
        ]
        if not better:
            return picks
        _, unit, choice = min(better, key=lambda step: (step[0], step[1], step[2].nbytes))
        picks = picks.with_choice(unit, choice)
