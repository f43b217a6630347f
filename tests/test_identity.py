"""Which session a call belongs to: the order in which ids count, and that none leaves its tenant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.response_ids import item_id, owner_of, response_id, thread_of
from gateway.identity import Session, session_of

# In the order in which they count, as (headers, body).
SOURCES: list[tuple[dict[str, str], dict[str, object]]] = [
    ({"x-session-id": "a"}, {}),
    ({"x-session-affinity": "b"}, {}),
    ({"session_id": "c"}, {}),
    ({}, {"session_id": "d"}),
    ({}, {"prompt_cache_key": "e"}),
    ({}, {"previous_response_id": "resp_9_f"}),
    ({}, {"conversation": {"id": "g"}}),
    ({"x-openwebui-chat-id": "h"}, {}),
    ({}, {"metadata": {"user_id": "i"}}),
    ({}, {"user": "j"}),
]


@pytest.mark.parametrize("place", range(len(SOURCES)))
def test_the_first_id_that_is_given_counts(place: int) -> None:
    """With everything from some place on given, that place's id is the session."""
    headers = {name: value for given, _ in reversed(SOURCES[place:]) for name, value in given.items()}
    body = {name: value for _, given in reversed(SOURCES[place:]) for name, value in given.items()}

    assert session_of(headers, body, tenant="t") == Session("t", "abcdefghij"[place])


def test_ids_of_single_requests_name_no_session() -> None:
    """Request ids and traces differ with every request, so they are never used."""
    headers = {"x-client-request-id": "1", "traceparent": "00-1-2-01", "x-request-id": "3"}

    assert session_of(headers, {}, tenant="t") is None


def test_a_session_is_its_tenants() -> None:
    """The same id of two tenants is two sessions."""
    assert session_of({"x-session-id": "a"}, {}, tenant="t") != session_of({"x-session-id": "a"}, {}, tenant="u")


def test_what_is_empty_or_no_text_is_passed_over() -> None:
    """Blank headers and values of another type count as absent, wherever they stand."""
    body = {"prompt_cache_key": 5, "conversation": [], "metadata": "x", "previous_response_id": "foreign", "user": "j"}

    assert session_of({"x-session-id": "  "}, body, tenant="t") == Session("t", "j")


def test_a_long_id_is_kept_as_its_digest() -> None:
    """No client can make us keep ids of any length; long ones still differ."""
    first, second = (session_of({}, {"user": "x" * 1000 + end}, tenant="t") for end in "ab")

    assert first is not None
    assert second is not None
    assert (len(first.id), first == second) == (71, False)


def test_all_responses_of_a_thread_are_one_session() -> None:
    """Each response continues the one before under a new id, and the session stays the same."""
    first = response_id("c1", None)
    second = response_id("c2", first)
    third = response_id("c3", second)

    assert {thread_of(each) for each in (first, second, third)} == {"c1"}
    assert len({first, second, third}) == 3


@given(st.text())
def test_any_text_may_be_given_as_an_id(given_id: str) -> None:
    """Ids come from clients: none breaks the reading, and those of items lead back to their response."""
    thread_of(given_id)
    owner_of(given_id)

    assert owner_of(item_id("msg", 3, "resp_c2_c1")) == ("resp_c2_c1", 3)
