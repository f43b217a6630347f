"""Answers that company never changes: random schedules of calls that arrive, pause, leave, fork and are preempted.

Each schedule is made of a seed alone, so a failure names the schedule that shows it again.
"""

from __future__ import annotations

from random import Random

import pytest

from backends.api import Call, ResponseFormat
from backends.engine import Engine
from tests.toy_model import Heard, answer, finish, start, toy_call, toy_engine

BOUND = ResponseFormat("choice", choices=("abcabcabcabc", "abba", "b"))
HABITS = (0.0, 12.0)  # the second goes round in circles, so that guesses are often right


def random_call(random: Random, number: int) -> Call:
    """Make a call: greedy or drawn, free or bound to a form, up to three answers to a prompt that others share."""
    text = "".join(random.choices("ab", k=random.randint(1, 30)))
    return toy_call(
        text,
        f"call-{number}",
        temperature=random.choice([0.0, 1.0]),
        max_tokens=random.randint(1, 12),
        choices=random.choice([1, 1, 2, 3]),
        response_format=random.choice([ResponseFormat(), ResponseFormat(), ResponseFormat(), BOUND]),
    )


def random_engine(random: Random, habit: float) -> Engine:
    """Make an engine with little room, so that sequences must give up their blocks."""
    return toy_engine(
        kv_blocks=random.randint(12, 30),
        habit=habit,
        max_batch=random.randint(1, 6),
        token_budget=random.randint(6, 24),
        max_draft=random.choice([0, 2, 6]),
    )


def run(engine: Engine, calls: list[Call], random: Random) -> tuple[Heard, set[str]]:
    """Let calls arrive, pause and be cancelled; return what came out and who was cancelled."""
    heard, cancelled, coming = Heard(), set[str](), list(calls)
    while coming or not engine.is_idle:
        match random.randint(0, 7):
            case 0 | 1 | 2 if coming:
                start(engine, coming.pop())
            case 3:
                engine.hold(random.choice(calls).id)
            case 4:
                engine.resume(random.choice(calls).id)
            case 5 if random.random() < 0.25:
                cancelled.add(call_id := random.choice(calls).id)
                engine.cancel(call_id)
        heard.add(engine.step(0.0))
        assert engine.blocks.used + engine.blocks.free == engine.blocks.total
    for call in calls:
        engine.resume(call.id)
    return finish(engine, heard), cancelled


def check(seed: int) -> Engine:
    """Run the schedule of a seed and compare every answer with the one given alone; nothing may leak."""
    random = Random(seed)
    habit = random.choice(HABITS)
    engine = random_engine(random, habit)
    calls = [random_call(random, number) for number in range(random.randint(1, 8))]

    heard, cancelled = run(engine, calls, random)

    assert (engine.blocks.free, engine.unanswered) == (engine.blocks.total, 0), f"schedule {seed} leaks"
    assert not heard.errors, f"schedule {seed}: {heard.errors}"
    for call in calls:
        compare(call, answer(call, habit=habit), heard, seed, is_cancelled=call.id in cancelled)
    return engine


def compare(call: Call, alone: Heard, heard: Heard, seed: int, *, is_cancelled: bool) -> None:
    """Hold an answer and its counts against those of the call alone; a cancelled one may have stopped anywhere."""
    for index in range(call.choices):
        whole, told = alone.text(call.id, index), heard.text(call.id, index)
        assert whole.startswith(told) if is_cancelled else whole == told, f"schedule {seed}, {call.id}, answer {index}"
    if not is_cancelled:
        before, after = (each.deltas[call.id][-1].usage for each in (alone, heard))
        assert before is not None
        assert after is not None
        assert (before.prompt_tokens, before.completion_tokens) == (after.prompt_tokens, after.completion_tokens)
        assert 0 <= after.cached_tokens < after.prompt_tokens


def test_company_never_changes_an_answer() -> None:
    """300 schedules leak nothing, every answer is the one given alone, and all that can happen has happened."""
    engines = [check(seed) for seed in range(300)]

    assert sum(engine.stats.preemptions for engine in engines) > 20
    assert sum(engine.stats.accepted_tokens for engine in engines) > 50
    assert sum(engine.stats.drafted_tokens - engine.stats.accepted_tokens for engine in engines) > 20


@pytest.mark.slow
@pytest.mark.parametrize("thousand", range(10))
def test_company_never_changes_an_answer_in_ten_thousand_schedules(thousand: int) -> None:
    """The same over 10,000 other schedules."""
    for seed in range(1000 * (thousand + 1), 1000 * (thousand + 2)):
        check(seed)
