"""The bounded line of those who wait."""

from hypothesis import given
from hypothesis import strategies as st

from batching.queue import Queue


def drained(queue: Queue[str]) -> list[str]:
    """Take everybody out, in order."""
    order = []
    while (item := queue.first()) is not None:
        order.append(item)
        queue.leave(item)
    return order


def test_first_come_is_first_served() -> None:
    """The line keeps the order of arrival."""
    queue = Queue[str](8)
    for item in "abc":
        queue.join(item)

    assert drained(queue) == ["a", "b", "c"]


def test_who_had_a_place_comes_before_all_others() -> None:
    """A preempted one stands at the front."""
    queue = Queue[str](8)
    queue.join("late")

    queue.rejoin("preempted")

    assert drained(queue) == ["preempted", "late"]


def test_a_full_line_refuses_newcomers_only() -> None:
    """The bound counts who cannot leave the line at once, and never refuses who had a place."""
    queue = Queue[str](1)
    queue.join("a")

    assert queue.is_full(places=0)
    assert not queue.is_full(places=1)
    queue.rejoin("b")
    assert len(queue) == 2


def test_leaving_twice_is_fine() -> None:
    """Cancelling what is no longer in line changes nothing."""
    queue = Queue[str](1)
    queue.join("a")

    queue.leave("a")
    queue.leave("a")

    assert "a" not in queue


@given(st.lists(st.integers(0, 20), unique=True), st.sets(st.integers(0, 20)))
def test_leaving_keeps_the_order_of_the_rest(arrivals: list[int], leavers: set[int]) -> None:
    """Whoever leaves the line, the others keep their order."""
    queue = Queue[str](100)
    for number in arrivals:
        queue.join(str(number))

    for number in leavers:
        queue.leave(str(number))

    assert drained(queue) == [str(number) for number in arrivals if number not in leavers]
