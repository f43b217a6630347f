"""Allocation of bytes: within the budget, on the frontier, and better with more."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engine.allocate import Choice, allocate, frontier, hull
from backends.engine.quant import Scheme

CHOICE = st.builds(Choice, st.just(Scheme(4)), st.integers(1, 40), st.floats(0, 10, allow_subnormal=False))
OPTIONS = st.dictionaries(st.sampled_from("abcd"), st.lists(CHOICE, min_size=1, max_size=5), min_size=1)


def combinations(options):
    """Yield bytes and loss of every way to choose."""
    for picks in product(*options.values()):
        yield sum(choice.nbytes for choice in picks), sum(choice.loss for choice in picks)


@given(OPTIONS, st.integers(0, 160))
def test_an_allocation_keeps_to_its_budget(options, budget):
    """Whatever fits the budget is used, and nothing is returned only when nothing fits."""
    picks = allocate(options, budget)

    smallest = sum(min(choice.nbytes for choice in choices) for choices in options.values())
    assert (picks is None) == (smallest > budget)
    assert picks is None or picks.nbytes <= budget


@given(OPTIONS)
def test_no_choice_of_the_same_size_beats_the_frontier(options):
    """Each allocation of the frontier has the least loss of all that are not larger."""
    for picks in frontier(options):
        best = min(loss for nbytes, loss in combinations(options) if nbytes <= picks.nbytes)
        assert picks.loss <= best + 1e-6


@given(OPTIONS)
def test_the_frontier_grows_in_bytes_and_falls_in_loss(options):
    """Every step of the frontier pays bytes and gets exactness."""
    for smaller, larger in pairwise(frontier(options)):
        assert larger.nbytes > smaller.nbytes
        assert larger.loss < smaller.loss + 1e-9


@given(OPTIONS, st.integers(0, 160), st.integers(0, 40))
def test_a_larger_budget_is_never_worse_than_the_frontier_of_a_smaller(options, budget, more):
    """More bytes never lose what the frontier had with fewer."""
    smaller = [picks for picks in frontier(options) if picks.nbytes <= budget]
    larger = allocate(options, budget + more)

    assert not smaller or larger is None or larger.loss <= smaller[-1].loss + 1e-9


@pytest.mark.parametrize("losses", [[3.0, 2.9, 0.0], [3.0, 5.0, 0.0]])
def test_a_choice_above_the_line_between_its_neighbours_is_no_corner(losses):
    """A choice that gains less a byte than going further does is skipped, as no price on bytes picks it."""
    choices = [Choice(Scheme(4), nbytes, loss) for nbytes, loss in zip((10, 20, 30), losses, strict=True)]

    assert hull(choices) == [choices[0], choices[2]]
