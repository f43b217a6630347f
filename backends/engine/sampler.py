"""Choose the next token of one sequence from its logits, in numpy. Refuses to know models, batches and torch.

The rules, in order: logit bias; repetition penalty over prompt and answer, presence and frequency penalties over the
answer; no end token before `min_tokens`; the grammar's mask; temperature; top-k; top-p; min-p. Greedy is an argmax
after the mask. The one random number of a token is a hash of (seed, position): a token depends neither on its batch nor
on preemption nor on the replica. Log-probabilities are those of the model's own distribution, before every rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backends.api import Sampling

MASK64 = (1 << 64) - 1
STRIDE = 256  # weights that are summed at once
NEAR = (5.0, 10.0, 20.0)  # logits this close to the largest are told from the rest before anything is sorted

Logits = NDArray[np.float32]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Choice:
    """A token with its ln p, and the likeliest alternatives as (token, ln p); ln p is 0 unless it was asked for.

    It `ends` the answer when the grammar lets nothing follow.
    """

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    ends: bool = False


class Mask(Protocol):
    """What a grammar lets come next."""

    def fill(self, logits: Logits) -> None:
        """Set the logits of forbidden tokens to -inf."""
        ...

    def accept(self, token_id: int) -> None:
        """Take the chosen token."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What a sequence's choices obey besides `Sampling`; `logprobs` None: none wanted, n: with n alternatives."""

    seed: int
    eos_ids: Collection[int] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    mask: Mask | None = None


class Sampler:
    """The choices of one sequence. It counts the tokens it chose, so it lives as long as the sequence."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], rules: Rules) -> None:
        self._sampling, self._rules = sampling, rules
        self._chosen: dict[int, int] = {}
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else set()
        self._made = 0
        self._counts = any((sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty != 1.0))
        self._plain = not self._counts and not sampling.logit_bias and rules.mask is None

    def choose(self, logits: Logits, position: int) -> Choice:
        """Choose the token for `position` of the sequence; `logits` is left unchanged."""
        token = self._pick(self._ruled(logits), position)
        self._count(token)
        return Choice(token, *self._logprobs(logits, token), ends=self._ends(token))

    def _ruled(self, logits: Logits) -> Logits:
        early = self._made < self._rules.min_tokens
        if self._plain and not early:
            return logits
        ruled = logits.copy()
        self._bias(ruled)
        self._penalise(ruled)
        if early:
            ruled[list(self._rules.eos_ids)] = -np.inf
        if self._rules.mask is not None:
            self._rules.mask.fill(ruled)
        return ruled

    def _bias(self, logits: Logits) -> None:
        for token, bias in self._sampling.logit_bias:
            if 0 <= token < len(logits):
                logits[token] += bias

    def _penalise(self, logits: Logits) -> None:
        if self._seen:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            values, penalty = logits[ids], self._sampling.repetition_penalty
            logits[ids] = np.where(values > 0, values / penalty, values * penalty)
        if self._chosen and self._counts:
            ids = np.fromiter(self._chosen.keys(), np.int64, len(self._chosen))
            times = np.fromiter(self._chosen.values(), np.float32, len(self._chosen))
            logits[ids] -= self._sampling.presence_penalty + self._sampling.frequency_penalty * times

    def _pick(self, logits: Logits, position: int) -> int:
        if self._sampling.temperature == 0.0:
            return int(logits.argmax())
        return draw(logits, self._sampling, uniform(self._rules.seed, position))

    def _count(self, token: int) -> None:
        self._made += 1
        if self._counts:
            self._chosen[token] = self._chosen.get(token, 0) + 1
        if self._sampling.repetition_penalty != 1.0:
            self._seen.add(token)

    def _ends(self, token: int) -> bool:
        mask = self._rules.mask
        if mask is None:
            return False
        mask.accept(token)
        return mask.finished

    def _logprobs(self, logits: Logits, token: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        if self._rules.logprobs is None:
            return 0.0, ()
        whole = float(logits.max()) + float(np.log(np.exp(logits - logits.max()).sum(dtype=np.float64)))
        ids = likeliest(logits, self._rules.logprobs)
        return float(logits[token]) - whole, tuple((int(at), float(logits[at]) - whole) for at in ids)


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on these two alone (splitmix64, twice)."""
    return (_mixed(_mixed(seed & MASK64) + position) >> 11) * 2.0**-53


def _mixed(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
    return state ^ (state >> 31)


def draw(logits: Logits, sampling: Sampling, point: float) -> int:
    """Return the token at `point` of the cumulated distribution that temperature, top-k, top-p and min-p leave."""
    ids, weights = kept(logits, sampling)
    at = drawn(weights, point)
    return at if ids is None else int(ids[at])


def drawn(weights: Weights, point: float) -> int:
    """Return the index at `point` of the cumulated weights; sums strides first, and goes into one of them."""
    strides = np.add.reduceat(weights, np.arange(0, len(weights), STRIDE)).cumsum(dtype=np.float64)
    mark = point * strides[-1]
    stride = _reached(strides, mark)
    first = stride * STRIDE
    inside = weights[first : first + STRIDE].cumsum(dtype=np.float64)
    return first + _reached(inside, mark - (strides[stride - 1] if stride else 0.0))


def _reached(cumulated: NDArray[np.float64], mark: float) -> int:
    """Return the first index beyond `mark`; rounding never leads past the last that weighs anything."""
    return min(int(np.searchsorted(cumulated, mark, side="right")), int((cumulated < cumulated[-1]).sum()))


def kept(logits: Logits, sampling: Sampling) -> tuple[NDArray[np.intp] | None, Weights]:
    """Return the tokens left (None: all) and their weights, the largest 1; fp32, as the logits are no finer."""
    weights = np.exp((logits - logits.max()) / np.float32(sampling.temperature))
    ids: NDArray[np.intp] | None = None
    if 0 < sampling.top_k < len(weights):
        ids = likeliest(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        ids = nucleus(weights, sampling.top_p, ids)
    if sampling.min_p > 0.0:
        ids = np.flatnonzero(weights >= sampling.min_p) if ids is None else ids[weights[ids] >= sampling.min_p]
    return ids, weights if ids is None else weights[ids]


def nucleus(weights: Weights, top_p: float, ids: NDArray[np.intp] | None) -> NDArray[np.intp]:
    """Return the fewest tokens, likeliest first, that hold `top_p` of the mass of `ids`; at least one.

    Sorting all tokens takes milliseconds, so those that matter are told from the rest by their weight first.
    """
    if ids is None:
        wanted = top_p * float(weights.sum())
        ids = next(ids for ids in _likely(weights) if weights[ids].sum() >= wanted or len(ids) == len(weights))
        ids = ids[np.lexsort((ids, -weights[ids]))]
    else:
        wanted = top_p * float(weights[ids].sum())
    count = int(np.searchsorted(weights[ids].cumsum(dtype=np.float64), wanted)) + 1
    return ids[:count]


def _likely(weights: Weights) -> Iterator[NDArray[np.intp]]:
    for least in (1e-2, 1e-4, 0.0):
        yield np.flatnonzero(weights >= least)


def likeliest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` largest values, largest first, equals by index; sorts only those."""
    if count <= 0:
        return np.empty(0, np.intp)
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    for distance in NEAR:
        near = np.flatnonzero(values >= values.max() - distance)
        if count <= len(near) < len(values):
            return near[likeliest(values[near], count)]
    edge = np.partition(values, -count)[-count]
    above, level = np.flatnonzero(values > edge), np.flatnonzero(values == edge)
    ids = np.concatenate([above, level[: count - len(above)]])
    return ids[np.lexsort((ids, -values[ids]))]
