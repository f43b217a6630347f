"""Fetch or compute: what restoring a prefix would take against computing it, by rates that are measured as we go.

Refuses to know clocks, stores and engines. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from backends.engine.kvcodec import CHUNK_TOKENS

REMEMBERED = 5  # measurements; of these the middle one counts, so that one that was disturbed changes nothing
LEAST_DEADLINE_S = 0.25  # below this a deadline measures the scheduler of the machine


class Rate:
    """So much a second: the median of the last measurements, among which a guess counts as the first two."""

    def __init__(self, guess: float) -> None:
        self.per_s = guess
        self._measured = deque([guess, guess], REMEMBERED)

    def learn(self, amount: float, took_s: float) -> None:
        """Take note of a measurement."""
        self._measured.append(amount / max(took_s, 1e-6))
        self.per_s = median(self._measured)


@dataclass(slots=True)
class TierRates:
    """How long a tier takes to answer at all, and how many bytes a second come then."""

    firsts: Rate
    bytes: Rate


def tier_guesses() -> dict[str, TierRates]:
    """Begin with what memory, Redis and an object store on one machine took: 1, 2 and 10 ms, then 200 MB/s."""
    firsts = {"memory": 1000.0, "redis": 500.0, "cold": 100.0}
    return {tier: TierRates(Rate(first), Rate(200e6)) for tier, first in firsts.items()}


@dataclass(slots=True)
class Rates:
    """All that is measured; tokens a second computed and decoded begin with a small model's on two cores."""

    prefill: Rate = field(default_factory=lambda: Rate(300.0))
    decode: Rate = field(default_factory=lambda: Rate(10_000.0))
    tiers: dict[str, TierRates] = field(default_factory=tier_guesses)

    def learn_fetch(self, tier: str, size: int, took_s: float) -> None:
        """Take note of a fetched chunk: what it took beyond its bytes is the tier's first byte."""
        if (rates := self.tiers.get(tier)) is not None:
            rates.firsts.learn(1, max(1e-4, took_s - size / rates.bytes.per_s))
            rates.bytes.learn(size, took_s)

    def compute_s(self, tokens: int) -> float:
        """How long a prompt's tokens take when they are computed."""
        return tokens / self.prefill.per_s

    def restore_s(self, tiers: Sequence[str], sizes: Sequence[int]) -> float:
        """How long stored chunks take: the slowest tier's first byte, then fetching and decoding side by side."""
        known = [(self.tiers.get(tier, self.tiers["cold"]), size) for tier, size in zip(tiers, sizes, strict=True)]
        first_s = max((1 / rates.firsts.per_s for rates, _ in known), default=0.0)
        fetch_s = sum(size / rates.bytes.per_s for rates, size in known)
        return first_s + max(fetch_s, len(known) * CHUNK_TOKENS / self.decode.per_s)

    def deadline_s(self, tokens: int, most_s: float) -> float:
        """How long a restore may take: as long as computing would, within `most_s`."""
        return min(most_s, max(LEAST_DEADLINE_S, self.compute_s(tokens)))


def colder(tiers: Sequence[str]) -> str:
    """Name the coldest of some tiers."""
    order = ("memory", "redis", "cold")
    return max(tiers, key=lambda tier: order.index(tier) if tier in order else len(order), default="")
