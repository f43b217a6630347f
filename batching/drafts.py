"""Guessing what a sequence says next: whatever followed the same three tokens before, in its prompt or its answer.

A step computes a guess along with the token before it, and keeps it when it turns out to be the token that is chosen
anyway; so guesses change how long an answer takes, never what it says. They pay where an answer repeats its prompt or
itself, as edits and JSON do. Whether one pays is arithmetic: a step over n sequences costs FIXED_ROWS + n rows of work,
a guess one row more, and when it is right it spares its sequence a turn in a later step, (FIXED_ROWS + n) / n rows.
So it pays when it is right more often than n / (FIXED_ROWS + n). How often that is, each sequence learns for itself.

Refuses to know models, scores and blocks. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

NGRAM = 3
FIXED_ROWS = (
    6.0  # what a step costs beside its rows, in rows: 23 ms for 1, 34 for 8, 50 for 16, 112 for 32 on two CPU cores
)
MOST_ROWS = 16  # beyond this many sequences only guesses that never fail would pay
READ_AT_ONCE = 1024  # tokens that a step reads at most of a long prompt, a quarter of a millisecond
PROBE_EVERY = 24  # where guesses do not pay, one in so many that could be made is made, to see whether they do now
MEMORY = 0.8  # how much of what was learnt is left after another draft
RIGHT, WRONG = 1.2, 0.8  # what is believed before anything was learnt: six in ten


class Drafter:
    """The guesses for one sequence, whose tokens only ever grow."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._read = NGRAM
        self._right, self._wrong = RIGHT, WRONG
        self._passed = 0

    def draft(self, tokens: Sequence[int], *, rows: int, most: int) -> list[int]:
        """Return at most `most` guesses of what follows `tokens`, while `rows` sequences decode; often none."""
        self._look_back(tokens)
        at = self._ends.get(tuple(tokens[-NGRAM:]))
        if at is None or most < 1:
            return []
        count = min(most, worthwhile(self._right / (self._right + self._wrong), rows) or self._probe())
        return continued(tokens, at, count)

    def learn(self, drafted: int, accepted: int) -> None:
        """Take note of how many guesses of a draft were right, from its first on."""
        self._right = MEMORY * self._right + accepted
        self._wrong = MEMORY * self._wrong + (accepted < drafted)
        self._passed = PROBE_EVERY if accepted else 0  # a probe that was right is followed by another at once

    def _probe(self) -> int:
        self._passed += 1
        return int(self._passed >= PROBE_EVERY)

    def _look_back(self, tokens: Sequence[int]) -> None:
        """Note where each three tokens were last followed by something."""
        until = min(len(tokens), self._read + READ_AT_ONCE)
        for end in range(self._read, until):
            self._ends[tuple(tokens[end - NGRAM : end])] = end
        self._read = max(until, self._read)


def worthwhile(chance: float, rows: int) -> int:
    """Return how many guesses in a row pay when each is right with this chance, while `rows` sequences decode."""
    least = rows / (rows + FIXED_ROWS)
    if chance <= least:
        return 0
    return int(log(least) / log(chance)) if chance < 1.0 else 1 << 10


def continued(tokens: Sequence[int], at: int, count: int) -> list[int]:
    """Return `count` tokens from `at` on, as if the tokens went on repeating themselves from there."""
    known = list(tokens[at : at + count])
    period = len(tokens) - at
    while len(known) < count:
        known.append(known[len(known) - period])
    return known
