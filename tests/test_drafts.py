"""Guesses of what comes next: from what was said before, as many as pay, and fewer the more often they are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.drafts import FIXED_ROWS, MOST_ROWS, NGRAM, PROBE_EVERY, READ_AT_ONCE, Drafter, worthwhile
from tests.toy_model import answer, finish, start, toy_call, toy_engine

POEM = list(range(40))


def trusting() -> Drafter:
    """Give one whose guesses have always been right."""
    drafter = Drafter()
    for _ in range(20):
        drafter.learn(8, 8)
    return drafter


def test_what_followed_the_same_tokens_is_guessed() -> None:
    """The last tokens were there before, so what came then is expected again."""
    assert trusting().draft([*POEM, 3, 4, 5], rows=1, most=6) == [6, 7, 8, 9, 10, 11]


def test_the_latest_place_counts() -> None:
    """Of two places where the tokens were followed by something, the nearer one is believed."""
    assert trusting().draft([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], rows=1, most=1) == [5]


def test_a_repetition_is_continued() -> None:
    """Text that goes round in circles is expected to go on so, further than it has gone."""
    assert trusting().draft([7, 8, 9, 7, 8, 9, 7], rows=1, most=8) == [8, 9, 7, 8, 9, 7, 8, 9]


def test_nothing_is_guessed_of_what_is_new() -> None:
    """Without a place to look at there is no guess."""
    assert trusting().draft(POEM, rows=1, most=8) == []


def test_a_long_prompt_is_read_in_pieces() -> None:
    """No step reads more than its share, and nothing is forgotten."""
    prompt = [*range(3 * READ_AT_ONCE), 5, 6, 7]
    drafter = trusting()

    guesses = [drafter.draft(prompt, rows=1, most=1) for _ in range(4)]

    assert guesses[-1] == [8]
    assert len(drafter._ends) == len(prompt) - NGRAM


@given(st.floats(0, 1), st.integers(1, 64))
def test_the_last_guess_that_is_made_still_pays(chance: float, rows: int) -> None:
    """It is right often enough for the row it costs, and one more would not be."""
    count = worthwhile(chance, rows)

    least = rows / (rows + FIXED_ROWS)
    assert count == 0 or chance**count >= least - 1e-9
    assert chance == 1.0 or chance ** (count + 1) <= least + 1e-9


def test_guesses_that_are_wrong_stop_and_are_tried_again_now_and_then() -> None:
    """A sequence that cannot be guessed costs one row in so many; being right brings the guesses back."""
    drafter, tokens = Drafter(), [*POEM, 3, 4, 5]
    for _ in range(30):
        drafter.learn(1, 0)

    silent = [drafter.draft(tokens, rows=8, most=8) for _ in range(PROBE_EVERY)]
    for _ in range(12):
        drafter.learn(1, 1)

    assert [len(guesses) for guesses in silent] == [0] * (PROBE_EVERY - 1) + [1]
    assert len(drafter.draft(tokens, rows=8, most=8)) > 1


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_guessing_changes_no_answer_and_saves_steps(batch: int) -> None:
    """Greedy or drawn, every token is the one that would have come anyway."""
    engine = toy_engine(habit=16.0)
    calls = [
        toy_call("abc" * (n + 1), f"call-{n}", temperature=n % 2 / 2, max_tokens=20, ignore_eos=True)
        for n in range(batch)
    ]
    start(engine, *calls)

    heard = finish(engine)

    assert [heard.text(c.id) for c in calls] == [answer(c, habit=16.0).text(c.id) for c in calls]
    assert engine.stats.accepted_tokens > batch
    assert engine.stats.steps < 20
    assert engine.blocks.used == 0


def test_usage_counts_what_was_said_not_what_was_guessed() -> None:
    """Guesses are nobody's tokens, and a limit in the midst of right ones holds."""
    engine = toy_engine(habit=16.0)
    start(engine, toy_call("abcabc", max_tokens=13, ignore_eos=True))

    last = finish(engine).deltas["call"][-1]

    assert (last.finish, last.usage and last.usage.completion_tokens) == ("length", 13)
    assert engine.stats.drafted_tokens > 0


def test_a_full_batch_guesses_nothing() -> None:
    """Beyond so many sequences every row is needed for answers."""
    engine = toy_engine(habit=16.0, max_batch=MOST_ROWS + 1, kv_blocks=400, token_budget=400)
    start(engine, *(toy_call("abcabc", f"{n}", max_tokens=12, ignore_eos=True) for n in range(MOST_ROWS + 1)))

    finish(engine)

    assert engine.stats.drafted_tokens == 0


def test_a_guess_never_takes_a_block_that_somebody_needs() -> None:
    """With blocks for the answers alone nobody is preempted for a guess."""
    engine = toy_engine(habit=16.0, kv_blocks=7)
    start(engine, toy_call("abcabc", "one", max_tokens=8), toy_call("bcdbcd", "two", max_tokens=6))

    finish(engine)

    assert engine.stats.preemptions == 0
