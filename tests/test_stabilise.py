"""stabilise_prompt moves what moves to the end, and changes nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, Message, Tool
from gateway.stabilise import stabilised, tells_time

LINES = st.lists(
    st.one_of(
        st.text(alphabet="abc :0-\r\t", max_size=12),
        st.just("Current time: 2026-11-25 10:04"),
        st.just("Today is May 3"),
    ),
    max_size=8,
)
NAMES = st.lists(st.text(alphabet="abcd", min_size=1, max_size=3), unique=True, max_size=4)


def of(lines: list[str], tools: tuple[Tool, ...] = ()) -> Call:
    """Make a call with a system prompt of lines."""
    return Call("c", "m", (Message("system", "\n".join(lines)), Message("user", "Now 2026-11-25?")), tools=tools)


@pytest.mark.parametrize(
    ("line", "does"),
    [
        ("Current date: 2026-11-25", True),
        ("It is now 10:04.", True),
        ("Today is Wednesday, November 25, 2026", True),
        ("The date of release was never set.", False),
        ("Call me at 10:04", False),
        ("Updated 2026-11-25", False),
    ],
)
def test_a_line_tells_the_time_by_a_word_and_a_moment(line: str, *, does: bool) -> None:
    """Both are needed, so that a version or a meeting stays where it is."""
    assert tells_time(line) is does


@given(LINES)
def test_lines_are_moved_never_changed(lines: list[str]) -> None:
    """The same lines, those that stay in their order, and doing it twice is doing it once; users' words stay."""
    call = of(lines)
    once = stabilised(call)

    assert Counter(once.messages[0].text.split("\n")) == Counter("\n".join(lines).split("\n"))
    assert stabilised(once) == once
    assert once.messages[1] == call.messages[1]


@given(LINES.filter(lambda lines: not any(map(tells_time, lines))), st.integers(0, 8))
def test_prompts_that_differ_in_the_time_alone_begin_alike(lines: list[str], at: int) -> None:
    """All of the system prompt but its last line is the same from turn to turn."""
    turns = [[*lines[:at], f"Current time: 10:0{minute}", *lines[at:]] for minute in (1, 2)]

    first, second = (stabilised(of(turn)).messages[0].text for turn in turns)

    assert first.rpartition("\n")[0] == second.rpartition("\n")[0] == "\n".join(lines)


@given(NAMES, st.randoms())
def test_the_order_in_which_tools_are_sent_does_not_matter(names: list[str], chance: object) -> None:
    """Tools come by name, the keys of their schemas sorted; arrays keep their order."""
    tools = [
        Tool(name, parameters={"type": "object", "required": ["b", "a"], "properties": {"b": {}, "a": {}}})
        for name in names
    ]
    mixed = [replace(tool, parameters=dict(reversed(tool.parameters.items()))) for tool in tools]
    chance.shuffle(mixed)  # type: ignore[attr-defined]

    written = [[orjson.dumps(tool) for tool in stabilised(of([], tuple(each))).tools] for each in (tools, mixed)]

    assert written[0] == written[1]
    assert all(tool.parameters["required"] == ["b", "a"] for tool in stabilised(of([], tuple(tools))).tools)
