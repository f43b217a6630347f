"""Sampling follows its rules exactly, and one token depends on nothing but its own logits, seed and position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from backends.api import Sampling
from backends.engine.sampler import Rules, Sampler, draw, kept, likeliest, uniform

LOGITS = hnp.arrays(np.float32, st.integers(1, 600), elements=st.floats(-30, 30, width=32))
RNG = np.random.default_rng(7)


def softmax(logits):
    """Give the distribution in fp64."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def test_temperature_zero_takes_the_first_of_the_largest():
    """Greedy is argmax, the lowest id among equals."""
    sampler = Sampler(Sampling(temperature=0.0), [], Rules(seed=1))

    assert sampler.choose(np.array([1, 3, 3, 2], np.float32), 0).token == 1


@given(LOGITS, st.integers(0, 2**64), st.integers(0, 10**6))
def test_a_token_depends_on_seed_and_position_alone(logits, seed, position):
    """What was chosen before, and in which batch, changes nothing."""
    fresh = Sampler(Sampling(), [], Rules(seed))
    used = Sampler(Sampling(), [], Rules(seed))
    used.choose(logits, position + 1)

    assert fresh.choose(logits, position) == used.choose(logits, position)


def test_uniform_numbers_are_even_over_seeds_and_positions():
    """Chi-squared of 20 bins over 20,000 draws stays below the 99.99 % point, along seeds and along positions."""
    for draws in ([uniform(9, n) for n in range(20_000)], [uniform(n, 9) for n in range(20_000)]):
        counts = np.histogram(draws, 20, (0, 1))[0]

        assert ((counts - 1000) ** 2 / 1000).sum() < 52.4


def test_frequencies_follow_the_distribution():
    """Chi-squared of 20,000 choices against softmax(logits / temperature)."""
    logits = RNG.normal(size=12).astype(np.float32)
    sampler = Sampler(Sampling(temperature=0.7), [], Rules(seed=3))

    counts = Counter(sampler.choose(logits, position).token for position in range(20_000))

    expected = softmax(logits / 0.7) * 20_000
    assert sum((counts[i] - want) ** 2 / want for i, want in enumerate(expected)) < 38.0


@given(LOGITS, st.floats(0.01, 0.999), st.floats(0.2, 3.0))
def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass(logits, top_p, temperature):
    """The kept tokens reach top_p, and without their least likely one they do not."""
    mass = softmax(logits.astype(np.float64) / temperature)

    ids, _ = kept(logits, Sampling(temperature=temperature, top_p=top_p))

    assert mass[ids].sum() >= top_p - 1e-6
    assert mass[ids[:-1]].sum() < top_p + 1e-6
    assert mass[ids].min() >= np.delete(mass, ids).max(initial=0) - 1e-12


def test_top_p_looks_past_its_first_candidates_when_the_distribution_is_flat():
    """Ten thousand equal tokens at top_p = 0.5 leave five thousand."""
    ids, _ = kept(np.zeros(10_000, np.float32), Sampling(top_p=0.5))

    assert abs(len(ids) - 5000) <= 1


@given(LOGITS, st.integers(1, 700))
def test_top_k_keeps_the_k_largest(logits, top_k):
    """The kept values are the k largest ones."""
    _, weights = kept(logits, Sampling(top_k=top_k))

    every = np.sort(softmax(logits) / softmax(logits).max())[::-1]
    assert np.allclose(np.sort(weights)[::-1], every[:top_k])


@given(LOGITS, st.floats(0.01, 1.0))
def test_min_p_drops_what_is_far_below_the_likeliest(logits, min_p):
    """A token stays when its probability is at least min_p of the largest."""
    ids, _ = kept(logits, Sampling(min_p=min_p))

    assert set(ids) == set(np.flatnonzero(np.exp(logits.astype(np.float64) - logits.max()) >= min_p))


@given(LOGITS, st.integers(0, 700))
def test_likeliest_is_a_stable_sort_cut_short(logits, count):
    """Largest first, the lower id among equals."""
    assert likeliest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


def test_penalties_follow_their_formula():
    """Repetition divides or multiplies over prompt and answer; presence and frequency subtract over the answer."""
    sampling = Sampling(0.0, presence_penalty=0.3, frequency_penalty=0.2, repetition_penalty=1.3)
    sampler, prompt, answer = Sampler(sampling, [1, 2], Rules(seed=0)), [1, 2], []

    for position in range(200):
        logits = RNG.normal(size=9).astype(np.float32)
        wanted = logits.copy()
        for token in {*prompt, *answer}:
            wanted[token] = wanted[token] / np.float32(1.3) if wanted[token] > 0 else wanted[token] * np.float32(1.3)
        for token in set(answer):
            wanted[token] -= 0.3 + 0.2 * answer.count(token)
        answer.append(sampler.choose(logits, position).token)
        assert wanted[answer[-1]] == pytest.approx(wanted.max(), abs=1e-5)


def test_logit_bias_can_force_and_forbid():
    """-100 and +100 decide, as clients expect."""
    sampler = Sampler(Sampling(0.0, logit_bias=((0, -100.0), (2, 100.0), (99, 5.0))), [], Rules(seed=0))

    assert sampler.choose(np.array([9, 8, 0], np.float32), 0).token == 2


def test_no_end_token_before_min_tokens():
    """The end is forbidden until that many tokens were chosen."""
    sampler = Sampler(Sampling(0.0), [], Rules(seed=0, eos_ids={1}, min_tokens=2))
    logits = np.array([1, 9, 2], np.float32)

    assert [sampler.choose(logits, at).token for at in range(3)] == [2, 2, 1]


def test_logprobs_are_those_of_the_model_before_every_rule():
    """Temperature, bias and penalties do not show in them; the logits given are not changed."""
    logits = RNG.normal(size=50).astype(np.float32)
    before = logits.copy()
    sampler = Sampler(Sampling(0.5, logit_bias=((7, 100.0),)), [], Rules(seed=0, logprobs=3))

    choice = sampler.choose(logits, 0)

    wanted = np.log(softmax(before))
    assert choice.token == 7
    assert choice.logprob == pytest.approx(wanted[7], abs=1e-5)
    assert [token for token, _ in choice.top] == np.argsort(-wanted)[:3].tolist()
    assert (logits == before).all()


@given(
    hnp.arrays(np.float32, st.integers(3, 600), elements=st.floats(-30, 30, width=32)),
    st.floats(0, 1, exclude_max=True),
)
def test_a_drawn_token_always_weighs_something(logits, point):
    """Rounding never leads to a token that a mask forbids, wherever the forbidden ones are."""
    logits[::2] = logits[-1] = -np.inf
    logits[1] = 0.0

    assert np.isfinite(logits[draw(logits, Sampling(), point)])


def test_a_draw_goes_by_the_cumulated_distribution():
    """Summing by strides finds the token that one long sum finds, over a vocabulary of many strides."""
    logits = RNG.normal(scale=2, size=5_000).astype(np.float32)
    cumulated = softmax(logits).cumsum()

    for point in np.linspace(0, 0.9999, 400):
        token = draw(logits, Sampling(), point)
        assert cumulated[token] > point - 1e-6
        assert token == 0 or cumulated[token - 1] <= point + 1e-6
