"""Which replica is asked, and how calls wait for one."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Health, Replica
from gateway.auth import ANONYMOUS, Tenant
from gateway.readiness import Readiness
from gateway.refusal import Refusal
from gateway.routing import Models, Outstanding, ordered
from gateway.settings import Model, Release
from tests.paths import Scripted

MODELS = Models([Model(name=name, aliases=(f"{name}-alias",), releases=(Release(source="echo"),)) for name in "ab"])


def test_a_model_is_found_by_each_of_its_names() -> None:
    """Name and alias lead to the same model."""
    assert MODELS.find("a-alias", ANONYMOUS) is MODELS.find("a", ANONYMOUS)


@pytest.mark.parametrize("name", ["b", "b-alias", "gone"])
def test_what_a_tenant_may_not_call_is_told_like_what_is_not_there(name: str) -> None:
    """The refusal lists what the tenant may call and nothing else."""
    with pytest.raises(Refusal, match=r"there are: a, a-alias$") as caught:
        MODELS.find(name, Tenant("t", frozenset({"a"})))

    assert (caught.value.status, caught.value.param) == (404, "model")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 9)), max_size=12))
def test_ready_replicas_of_the_model_come_least_loaded_first(states: list[tuple[str, bool, int]]) -> None:
    """Exactly the ready replicas of the model are returned, in the order of what they still have to do."""
    replicas = [Replica(str(i), model, "stable", Scripted()) for i, (model, _, _) in enumerate(states)]
    health = {str(i): Health(ready=ready) for i, (_, ready, _) in enumerate(states)}
    outstanding = Outstanding()
    with ExitStack() as given_calls:
        for i, (_, _, sequences) in enumerate(states):
            given_calls.enter_context(outstanding.given(str(i), sequences))

        found = [int(replica.id) for replica in ordered(replicas, "a", health, outstanding)]

    assert sorted(found) == [i for i, (model, ready, _) in enumerate(states) if model == "a" and ready]
    assert [states[i][2] for i in found] == sorted(states[i][2] for i in found)


def test_what_was_given_is_taken_back_when_the_call_fails() -> None:
    """A failing call leaves no outstanding sequences behind."""
    outstanding = Outstanding()

    with pytest.raises(ZeroDivisionError), outstanding.given("r", 3):
        raise ZeroDivisionError

    assert outstanding["r"] == 0


async def test_a_ring_before_the_wait_is_not_missed() -> None:
    """A change between looking and waiting is seen, as rings are counted."""
    readiness = Readiness(most=1, patience_s=5)
    seen = readiness.rings
    readiness.ring()

    assert await readiness.rang(seen, within_s=0)


async def test_a_call_waits_no_longer_than_its_deadline() -> None:
    """A call that finds no replica until its deadline is refused with a Retry-After."""
    readiness = Readiness(most=1, patience_s=0.01)

    with pytest.raises(Refusal) as caught:
        await readiness.changed(readiness.rings, readiness.deadline())

    assert (caught.value.status, caught.value.headers["retry-after"]) == (503, "10")


async def test_a_place_is_free_again_when_who_waited_has_gone() -> None:
    """A cancelled call gives its place in the line back."""
    readiness = Readiness(most=1, patience_s=5)
    first = asyncio.create_task(readiness.rang(0, within_s=5))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})

    second = asyncio.create_task(readiness.rang(0, within_s=5))
    await asyncio.sleep(0)
    readiness.ring()

    assert await second
