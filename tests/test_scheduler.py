"""Continuous batching: what is planned, in which order, and that everybody gets done."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.engine.patience import LONGEST_S, Patience
from batching.blocks import Blocks
from batching.scheduler import Limits, Plan, Scheduler, Sequence

SIZE = 4


def scheduler(blocks: int = 64, batch: int = 8, budget: int = 32) -> Scheduler:
    """Make a scheduler with blocks of 4 tokens."""
    return Scheduler(Blocks(blocks, SIZE), Limits(max_batch=batch, token_budget=budget, max_waiting=4))


def arrive(s: Scheduler, *prompts: list[int]) -> list[Sequence]:
    """Let sequences with these prompts stand in line."""
    sequences = [Sequence(list(prompt), arrival) for arrival, prompt in enumerate(prompts)]
    for sequence in sequences:
        s.join(sequence)
    return sequences


def step(s: Scheduler) -> Plan:
    """Plan and compute one step; each sequence whose last token was computed gets a next one."""
    plan = s.plan()
    s.advance(plan, {c.sequence: [1000 + len(c.sequence.tokens)] for c in plan.chunks if c.is_last})
    return plan


def counts(plan: Plan) -> list[int]:
    """Tell how many tokens each sequence computes."""
    return [chunk.count for chunk in plan.chunks]


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    """Whoever decodes gets its token in every step; the prompt gets what is left of the budget."""
    s = scheduler(budget=8)
    arrive(s, [1, 2], [3] * 20)

    assert [counts(step(s)) for _ in range(4)] == [[2, 6], [1, 7], [1, 7], [1, 1]]


def test_no_more_run_than_the_batch_holds() -> None:
    """The ninth sequence waits while eight run."""
    s = scheduler()
    sequences = arrive(s, *([n, n + 1] for n in range(9)))

    step(s)
    s.leave(sequences[0])

    assert len(s.waiting) == 1
    assert sequences[8] in {chunk.sequence for chunk in s.plan().chunks}


def test_a_patient_line_waits_for_guarded_blocks() -> None:
    """Nobody is admitted at the price of what is saved nowhere, before it is let go or patience ends."""
    s = scheduler(blocks=4)
    (first,) = arrive(s, [1] * 12)
    step(s)
    s.blocks.guard(s.blocks.find(first.chain), is_guarded=True)
    s.leave(first)
    (second,) = arrive(s, [2] * 9)
    s.is_patient = True

    waited, was_short = counts(step(s)), s.is_short
    s.blocks.guard(s.blocks.find(first.chain), is_guarded=False)

    assert (waited, was_short) == ([], True)
    assert (counts(step(s)), s.is_short) == ([9], False)
    assert second.table


def test_an_impatient_line_takes_guarded_blocks() -> None:
    """What cannot be saved in time does not hold up answers."""
    s = scheduler(blocks=4)
    (first,) = arrive(s, [1] * 12)
    step(s)
    s.blocks.guard(s.blocks.find(first.chain), is_guarded=True)
    s.leave(first)
    arrive(s, [2] * 9)

    assert (counts(step(s)), s.is_short) == ([9], False)


def test_patience_ends_without_progress_and_comes_back_with_it() -> None:
    """Saving that gets on is waited for; a store that takes nothing is not."""
    patience = Patience()
    patience.note(1.0, is_short=True)

    assert patience.lasts(0, 1.0 + LONGEST_S / 2)
    assert not patience.lasts(0, 1.0 + LONGEST_S)
    assert patience.lasts(1, 1.0 + LONGEST_S)


def test_a_known_prefix_is_not_computed_again() -> None:
    """A second prompt with the same first blocks computes only what follows them."""
    s = scheduler()
    first, second = arrive(s, [1] * 8 + [2], [1] * 8 + [3, 4])
    s.waiting.leave(second)
    step(s)
    s.join(second)

    assert counts(step(s)) == [1, 2]
    assert second.cached == 8
    assert second.table[:2] == first.table[:2]


def test_the_last_token_of_a_wholly_known_prompt_is_computed_in_a_copy() -> None:
    """Its logits are wanted, and the block that others read must not be written."""
    s = scheduler()
    first, second = arrive(s, [1] * 8, [1] * 8)
    s.waiting.leave(second)
    step(s)
    s.join(second)

    plan = step(s)

    assert (second.cached, counts(plan)) == (7, [1, 1])
    assert plan.copies == [(first.table[1], second.table[1])]


def test_a_follower_waits_for_its_leader_and_shares_its_prompt() -> None:
    """Several answers to one prompt compute it once."""
    s = scheduler(budget=8)
    leader = Sequence([1] * 12, 0)
    follower = Sequence([1] * 12, 1, leader=leader)
    s.join(leader)
    s.join(follower)

    planned = [counts(step(s)) for _ in range(3)]

    assert planned == [[8], [4], [1, 1]]


def test_the_youngest_gives_its_blocks_to_the_oldest() -> None:
    """When blocks run out the youngest is computed again later, and nobody's answer is lost."""
    s = scheduler(blocks=5)
    old, young = arrive(s, [1] * 7, [2] * 7)
    step(s)
    step(s)

    step(s)

    assert (len(old.table), len(young.table), s.waiting.first()) == (3, 0, young)
    assert s.preemptions == 1


def test_on_hold_is_not_computed_and_loses_its_blocks_first() -> None:
    """A slow reader neither takes part in steps nor keeps blocks that others need."""
    s = scheduler(blocks=5)
    held, other = arrive(s, [1] * 7, [2] * 7)
    step(s)
    s.hold(held)

    planned = [[chunk.sequence for chunk in step(s).chunks] for _ in range(6)]

    assert planned == [[other]] * 6
    assert (len(held.table), held in s.parked, len(other.table)) == (0, True, 4)
    s.leave(other)
    s.resume(held)
    assert step(s).chunks[0].sequence is held


def test_a_newcomer_is_refused_when_the_line_is_full() -> None:
    """The line counts those for whom there is no place."""
    s = scheduler(batch=1)
    arrive(s, *([n] for n in range(4)))
    assert not s.is_full

    s.join(Sequence([9], 9))

    assert s.is_full


prompts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=20), min_size=1, max_size=8)


@settings(max_examples=200)
@given(prompts, st.integers(7, 20), st.integers(1, 4), st.integers(1, 16), st.data())
def test_everybody_gets_done_and_no_block_leaks(
    arrivals: list[list[int]], blocks: int, batch: int, budget: int, data: st.DataObject
) -> None:
    """With room for one whole sequence at least, each gets its 6 tokens, whoever is held or cancelled on the way."""
    s = scheduler(blocks, batch, budget)
    left = set(arrive(s, *arrivals))
    for steps in range(2000):
        if not left:
            break
        one = data.draw(st.sampled_from(sorted(left, key=lambda q: q.arrival))) if steps < 20 else None
        match data.draw(st.integers(0, 5)) if one else 0:
            case 1 if one:
                s.hold(one)
            case 2 if one:
                s.leave(one)
                left.discard(one)
        if steps >= 20:
            for sequence in left:
                s.resume(sequence)
        plan = step(s)
        assert sum(counts(plan)) <= budget
        assert len(plan.chunks) <= batch
        assert s.blocks.used + s.blocks.free == blocks
        for sequence in [q for q in left if len(q.tokens) >= q.prompt_tokens + 6]:
            s.leave(sequence)
            left.discard(sequence)
    else:
        pytest.fail("somebody starves")
    assert s.blocks.free == blocks
    assert s.is_idle
