"""The engine on a toy model: text, counts, and failures that stay with one call."""

from dataclasses import replace

import pytest

from backends.api import BackendError, Call, Sampling
from tests.toy_model import CONTEXT, EOS, LETTERS, POISON, Heard, answer, finish, start, toy_call, toy_engine


def test_an_answer_ends_at_its_token_limit_with_exact_counts() -> None:
    """Each delta counts its tokens; the last carries the usage of the whole call."""
    heard = answer(toy_call("hello", max_tokens=5))

    deltas = heard.deltas["call"]
    assert [delta.tokens for delta in deltas] == [1] * 5
    assert deltas[-1].finish == "length"
    assert deltas[0].usage is not None
    assert (deltas[0].usage.prompt_tokens, deltas[0].usage.completion_tokens) == (5, 1)
    assert deltas[-1].usage is not None
    assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (5, 5)


def test_the_token_that_ends_an_answer_counts_but_is_not_shown() -> None:
    """An end token is sampled, so it is counted; its text is nobody's."""
    calls = [toy_call(letter * 3, max_tokens=40) for letter in LETTERS]

    ended = next(deltas for call in calls if (deltas := answer(call).deltas["call"])[-1].finish == "stop")

    assert ended[-1].usage is not None
    assert ended[-1].usage.completion_tokens == sum(d.tokens for d in ended) == sum(len(d.text) for d in ended) + 1


def test_ignoring_the_end_goes_on_to_the_limit() -> None:
    """With ignore_eos or min_tokens an answer does not end early."""
    call = next(c for n in LETTERS if answer(c := toy_call(n * 3, max_tokens=40)).deltas["call"][-1].finish == "stop")

    held_open = answer(replace(call, min_tokens=40)).deltas["call"]

    assert held_open[-1].finish == "length"
    assert sum(delta.tokens for delta in held_open) == 40


def test_the_context_clips_an_answer() -> None:
    """An answer never grows beyond the context; without a limit of its own it ends there by length."""
    heard = answer(toy_call("a" * 40, max_tokens=None, ignore_eos=False, min_tokens=8))

    deltas = heard.deltas["call"]
    assert deltas[-1].finish == "length"
    assert sum(delta.tokens for delta in deltas) == CONTEXT - 40


def test_a_prompt_longer_than_the_context_is_rejected_with_both_numbers() -> None:
    """The error names how long the prompt is, how long it may be, and the field."""
    with pytest.raises(BackendError, match=r"60 tokens.*48") as refused:
        toy_engine().prepare(toy_call("a" * 60))

    error = refused.value
    assert (error.kind, error.code, error.param) == ("rejected", "context_length_exceeded", "messages")


@pytest.mark.parametrize("prompt", [(), (64,), (-1,)])
def test_a_prompt_of_wrong_tokens_is_rejected(prompt: tuple[int, ...]) -> None:
    """Token ids come from outside, and are checked."""
    with pytest.raises(BackendError, match=r"token") as refused:
        toy_engine().prepare(Call("c", "toy", prompts=(prompt,)))

    assert (refused.value.kind, refused.value.param) == ("rejected", "prompt")


def test_several_prompts_and_choices_get_an_index_each() -> None:
    """Sequence p * choices + i is the i-th choice for the p-th prompt, drawn from seed + i."""
    sampling = Sampling(temperature=1.0, seed=3)
    call = Call("call", "toy", prompts=("one", "two"), choices=2, sampling=sampling, max_tokens=6)
    heard = answer(call)

    alone = [
        answer(replace(call, prompts=(prompt,), choices=1, sampling=replace(sampling, seed=seed))).text("call")
        for prompt in ("one", "two")
        for seed in (3, 4)
    ]
    assert [heard.text("call", index) for index in range(4)] == alone
    usage = heard.deltas["call"][-1].usage
    assert usage is not None
    assert usage.prompt_tokens == 6


def test_a_stop_string_ends_the_answer_before_it() -> None:
    """The text before the stop string is shown, the stop string is not, and the tokens behind it all count."""
    whole = answer(toy_call()).text("call")

    heard = answer(toy_call(stop=(whole[3:5],)))

    assert heard.text("call") == whole[:3]
    last = heard.deltas["call"][-1]
    assert (last.finish, last.stop, last.usage and last.usage.completion_tokens) == ("stop", whole[3:5], 5)


def test_logprobs_come_with_the_text_they_belong_to() -> None:
    """One entry a token, with as many alternatives as asked for; greedy picks the likeliest."""
    heard = answer(toy_call(logprobs=2))

    entries = [entry for delta in heard.deltas["call"] for entry in delta.logprobs]
    assert "".join(entry.text for entry in entries) == heard.text("call")
    assert all(len(entry.top) == 2 and entry.top[0][0] == entry.text for entry in entries)


def test_a_prompt_said_before_is_not_computed_again() -> None:
    """The usage says how many tokens of the prompt came from blocks that were there."""
    engine = toy_engine()
    start(engine, toy_call("the same long prompt", "one"))
    finish(engine)

    start(engine, toy_call("the same long prompt", "two"))
    usage = finish(engine).deltas["two"][-1].usage

    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens) == (20, 19)


def test_a_tenant_never_finds_blocks_of_another() -> None:
    """Equal prompts of two tenants are computed twice; of one tenant, once."""
    engine = toy_engine()
    heard = Heard()

    for call_id, tenant in (("first", "ann"), ("foreign", "bob"), ("own", "ann")):
        start(engine, toy_call("a prompt of several blocks", call_id, tenant=tenant))
        finish(engine, heard)

    cached = {call_id: deltas[-1].usage.cached_tokens for call_id, deltas in heard.deltas.items() if deltas[-1].usage}
    assert cached == {"first": 0, "foreign": 0, "own": 24}


def test_two_tenants_that_are_computed_together_share_no_block() -> None:
    """Not even while both run is a block of one in the table of the other."""
    engine = toy_engine()
    start(engine, toy_call("a prompt of several blocks", "a", tenant="ann"))
    engine.step(0.0)
    start(engine, toy_call("a prompt of several blocks", "b", tenant="bob"))
    engine.step(0.0)

    assert engine.blocks.used >= 2 * engine.blocks.count_for(26)


def test_a_cancelled_call_frees_its_blocks() -> None:
    """Cancelling mid-answer returns every block at once, and cancelling again is fine."""
    engine = toy_engine()
    start(engine, toy_call())
    engine.step(0.0)

    engine.cancel("call")
    engine.cancel("call")

    assert engine.blocks.free == engine.blocks.total
    assert engine.is_idle


def test_on_hold_nothing_is_computed_and_resuming_loses_nothing() -> None:
    """A slow reader's call pauses and goes on where it was."""
    engine, heard = toy_engine(), Heard()
    start(engine, toy_call())
    heard.add(engine.step(0.0))
    engine.hold("call")
    assert engine.is_idle

    engine.resume("call")
    finish(engine, heard)

    assert heard.text("call") == answer(toy_call()).text("call")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_call_without_finite_logits_fails_alone(temperature: float) -> None:
    """The others of its batch are answered, and nobody shares its blocks later."""
    engine = toy_engine()
    poisoned = Call("bad", "toy", prompts=((POISON, *range(12)),), sampling=Sampling(temperature=temperature))
    start(engine, toy_call(call_id="good"), poisoned)

    heard = finish(engine)

    assert heard.errors["bad"].kind == "broken"
    assert heard.text("good") == answer(toy_call()).text("call")
    start(engine, replace(poisoned, id="again"))
    assert not engine.blocks.find(engine._scheduler.waiting.first().chain)  # type: ignore[union-attr]
    assert finish(engine).errors.keys() == {"again"}


def test_a_failed_step_ends_its_calls_and_the_next_call_is_answered() -> None:
    """Calls of a step that raised fail as broken; who waited goes on, and no old content is trusted."""
    engine = toy_engine(max_batch=1)
    start(engine, toy_call(call_id="running"), toy_call(call_id="waiting"))
    engine.step(0.0)
    engine._runner.is_out_of_order = True  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        engine.step(0.0)

    failed = engine.fail_running("out of order")
    engine._runner.is_out_of_order = False  # type: ignore[attr-defined]

    assert [call_id for call_id, _ in failed] == ["running"]
    assert (engine.blocks.used, engine.blocks.known) == (0, 0)
    assert finish(engine).text("waiting") == answer(toy_call()).text("call")


def test_a_full_line_refuses_with_the_time_to_wait() -> None:
    """The refusal says when a place is likely, at the pace at which answers finished."""
    engine = toy_engine(max_batch=1, max_waiting=1)
    for number in range(3):
        start(engine, toy_call(call_id=f"warm-{number}", max_tokens=1))
        engine.step(float(number))
    start(engine, toy_call(call_id="running"), toy_call(call_id="waiting"))

    with pytest.raises(BackendError, match="wait") as refused:
        start(engine, toy_call(call_id="more"), now=3.0)

    assert (refused.value.kind, refused.value.retryable, refused.value.retry_after_s) == ("overloaded", True, 3.0)


def test_the_end_token_is_none_of_the_letters() -> None:
    """The toy tokenizer's end token has no text, so showing it would be seen."""
    assert len(LETTERS) <= EOS
