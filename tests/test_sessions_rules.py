"""The pure rules of sessions in a worker: what fetching and computing cost, and where a prompt parts from the last."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, Message
from backends.sessions.costs import Rate, Rates, colder
from backends.sessions.diagnosis import Diagnosis, common, place


def test_a_rate_follows_what_is_measured_and_no_outlier() -> None:
    """One measurement that was disturbed changes nothing, three in a row are believed over any guess."""
    rate = Rate(100.0)

    rate.learn(1, 1.0)
    disturbed = rate.per_s
    for _ in range(3):
        rate.learn(20, 1.0)
    settled = rate.per_s
    rate.learn(10_000, 1.0)

    assert (disturbed, settled, rate.per_s) == (100.0, 20.0, 20.0)


def test_what_is_computed_fast_is_not_fetched_from_afar() -> None:
    """The same chunks pay on a slow machine and do not on a fast one."""
    rates = Rates()
    restore_s = rates.restore_s(["cold"] * 4, [1 << 20] * 4)

    for _ in range(3):
        rates.prefill.learn(1024, 10.0)
    slow_s = rates.compute_s(1024)
    for _ in range(40):
        rates.prefill.learn(1_000_000, 1.0)

    assert slow_s > restore_s > rates.compute_s(1024)


def test_a_tier_that_slows_down_is_believed() -> None:
    """What fetches take is what the next one is expected to take."""
    rates = Rates()
    before_s = rates.restore_s(["redis"], [1 << 20])

    for _ in range(3):
        rates.learn_fetch("redis", 1 << 20, 2.0)

    assert rates.restore_s(["redis"], [1 << 20]) >= 2.0 > before_s


def test_the_coldest_tier_names_a_restore() -> None:
    """Whatever the order."""
    assert colder(["memory", "cold", "redis"]) == "cold"
    assert colder([]) == ""


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_tokens_are_counted(one: list[int], other: list[int]) -> None:
    """As many as a comparison of one after the other finds."""
    counted = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    assert common(array("I", one), array("I", other)) == counted


def chat(*texts: str, tenant: str = "t") -> Call:
    """Make a call of a session."""
    return Call("c", "m", tuple(Message("user", text) for text in texts), tenant=tenant, session="s")


def asked(diagnosis: Diagnosis, call: Call) -> tuple[int, int] | None:
    """Ask with a template that puts brackets around each text, and a token a character."""
    rendered = "".join(f"[{message.text}]" for message in call.messages)
    return diagnosis.compare(call, [ord(each) for each in rendered], lambda tokens: "".join(map(chr, tokens)))


def test_a_changed_line_is_named_by_message_and_character() -> None:
    """A prompt that only goes on has nothing to tell; one that changed says where."""
    diagnosis = Diagnosis()

    first = asked(diagnosis, chat("today is Monday", "hello"))
    longer = asked(diagnosis, chat("today is Monday", "hello", "and?"))
    changed = asked(diagnosis, chat("today is Tuesday", "hello", "and?", "so?"))
    foreign = asked(diagnosis, chat("something else", tenant="u"))

    assert (first, longer, changed, foreign) == (None, None, (0, 9), None)


def test_what_lies_between_two_texts_belongs_to_the_later() -> None:
    """A template's own words are no message's."""
    messages = (Message("user", "one"), Message("user", " two "))

    assert place(messages, "<u>one</u><u>two</u>", 7) == (1, 0)
    assert place(messages, "<u>one</u><u>two</u>", 14) == (1, 2)
    assert place(messages, "<u>one</u><u>two</u>", 19) == (1, 5)


def test_forgotten_prompts_are_the_oldest() -> None:
    """What is remembered is bounded by bytes."""
    diagnosis = Diagnosis(most_bytes=100)
    asked(diagnosis, chat("a" * 15))

    asked(diagnosis, chat("b" * 15, tenant="other"))

    assert asked(diagnosis, chat("c" * 15)) is None
