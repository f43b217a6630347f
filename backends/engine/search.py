"""The best schemes within a size, checked end to end, with one repair. Refuses to know files and terminals.

The loss that `allocate` adds up is a prediction. The search rounds its best guess and judges it on held-out text; where
that misses the wanted accuracy, it judges each tensor class rounded alone, scales that class's predictions by what was
measured, allocates and rounds again, and keeps the better of the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backends.engine.allocate import Choice, allocate, frontier
from backends.engine.dense import rows_of
from backends.engine.evaluate import Quality, Reference
from backends.engine.quant import QuantTensor, Scheme
from backends.engine.recipes import Activations, Recipe, class_of
from backends.engine.sensitivity import stored_bytes
from backends.engine.study import Study, Watch, candidate, round_units
from backends.engine.work import Work

Options = Mapping[str, Sequence[Choice]]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for; `budget_bytes` is what matrices may take."""

    budget_bytes: int
    min_accuracy: float
    activations: Activations


@dataclass(frozen=True, slots=True)
class Attempt:
    """Schemes by unit, the units rounded by them, and what came of it with activations as they are and as int8."""

    schemes: Mapping[str, Scheme]
    rounded: Mapping[str, QuantTensor]
    nbytes: int
    fp32: Quality
    int8: Quality

    def quality(self, activations: Activations) -> Quality:
        """Return the quality with these activations."""
        return self.int8 if activations == "int8" else self.fp32


@dataclass(frozen=True, slots=True)
class Point:
    """Bytes of matrices and the accuracy they are expected to give."""

    nbytes: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best attempt (None: nothing fits the budget) and the frontier as the measurements correct it."""

    best: Attempt | None
    points: Sequence[Point]

    def is_met(self, wishes: Wishes) -> bool:
        """Say whether both limits hold."""
        return self.best is not None and self.best.quality(wishes.activations).accuracy >= wishes.min_accuracy

    def smallest(self, accuracy: float) -> Point | None:
        """Return the smallest point of the frontier expected to reach an accuracy."""
        return next((point for point in self.points if point.accuracy >= accuracy), None)


def search(learnt: Study, reference: Reference, wishes: Wishes, work: Work, watch: Watch) -> Outcome:
    """Allocate, round, judge, and repair once if that was not good enough."""
    options = storable(learnt.options)
    allocation = allocate(options, wishes.budget_bytes)
    if allocation is None:
        return Outcome(None, expected(options, floor=0.0, factor=1.0))
    best = attempt(learnt, reference, allocation.schemes, work, watch)
    outcome = Outcome(best, measured_points(options, best, wishes.activations))
    return outcome if outcome.is_met(wishes) else _repaired(learnt, reference, (wishes, best), work, watch)


def attempt(learnt: Study, reference: Reference, schemes: Mapping[str, Scheme], work: Work, watch: Watch) -> Attempt:
    """Round every unit by its scheme and judge the whole."""
    rounded = round_units(learnt, schemes, work, watch("rounding"))
    judging = watch("judging")
    fp32 = reference.judge(candidate(learnt.model, rounded, "fp32"))
    judging(0.5)
    int8 = reference.judge(candidate(learnt.model, rounded, "int8"))
    judging(1)
    rows = rows_of(learnt.model.spec)
    nbytes = sum(stored_bytes(tensor.scheme, rows[unit], tensor.shape[1]) for unit, tensor in rounded.items())
    return Attempt(schemes, rounded, nbytes, fp32, int8)


def follow(learnt: Study, reference: Reference, recipe: Recipe, work: Work, watch: Watch) -> Outcome:
    """Round by a recipe, whatever comes of it."""
    schemes = {unit: recipe.scheme_of(unit, learnt.model.spec) for unit in learnt.options}
    made = attempt(learnt, reference, schemes, work, watch)
    return Outcome(made, expected(storable(learnt.options), floor=0.0, factor=1.0))


def _repaired(learnt: Study, reference: Reference, missed: tuple[Wishes, Attempt], work: Work, watch: Watch) -> Outcome:
    """Allocate once more by losses that were measured, and keep the better attempt."""
    wishes, best = missed
    options = corrected(storable(learnt.options), learnt, reference, best)
    allocation = allocate(options, wishes.budget_bytes)
    if allocation is not None and allocation.schemes != best.schemes:
        again = attempt(learnt, reference, allocation.schemes, work, watch)
        best = max(best, again, key=lambda made: made.quality(wishes.activations).accuracy)
    return Outcome(best, measured_points(options, best, wishes.activations))


def storable(options: Options) -> dict[str, list[Choice]]:
    """Leave out what no kernel runs."""
    return {unit: [choice for choice in choices if choice.scheme.bits != 3] for unit, choices in options.items()}


def corrected(options: Options, learnt: Study, reference: Reference, made: Attempt) -> dict[str, list[Choice]]:
    """Scale the losses of every tensor class to what it was measured to cost alone."""
    factors = {
        name: _measured(learnt, reference, made, name) / _predicted(options, made, name)
        for name in {class_of(unit) for unit in options}
    }
    return {
        unit: [replace(choice, loss=choice.loss * factors[class_of(unit)]) for choice in choices]
        for unit, choices in options.items()
    }


def measured_points(options: Options, made: Attempt, activations: Activations) -> list[Point]:
    """Scale the frontier so that it passes through an attempt; int8 activations cost the same at every size."""
    predicted = sum(_predicted(options, made, name) for name in {class_of(unit) for unit in options})
    factor = max(math.log(made.fp32.ratio), made.fp32.kl / 2, 1e-9) / predicted
    return expected(options, math.log(made.quality(activations).ratio / made.fp32.ratio), factor)


def expected(options: Options, floor: float, factor: float) -> list[Point]:
    """Turn the frontier into bytes and expected accuracy: exp(-floor - factor * loss)."""
    return [Point(picks.nbytes, math.exp(-floor - factor * picks.loss)) for picks in frontier(options)]


def _measured(learnt: Study, reference: Reference, made: Attempt, name: str) -> float:
    alone = {unit: tensor for unit, tensor in made.rounded.items() if class_of(unit) == name}
    return max(reference.judge(candidate(learnt.model, alone, "fp32")).kl, 1e-9)


def _predicted(options: Options, made: Attempt, name: str) -> float:
    units = (unit for unit in options if class_of(unit) == name)
    losses = (choice.loss for unit in units for choice in options[unit] if choice.scheme == made.schemes[unit])
    return max(sum(losses), 1e-9)
