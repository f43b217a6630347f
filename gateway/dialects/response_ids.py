"""The ids of a response and its items: they carry the thread, so that a session is known without looking it up.

The first response of a thread is `resp_CALL`, those after it `resp_CALL_THREAD`, with the first one's CALL as THREAD;
the items of `resp_X` are `msg_N_X` and `fc_N_X`. Refuses to know whether such a response exists.
"""

from __future__ import annotations

_PREFIX = "resp_"


def response_id(call_id: str, previous_id: str | None) -> str:
    """Return the id of the response to a call that continues `previous_id`."""
    thread = thread_of(previous_id) if previous_id else None
    return f"{_PREFIX}{call_id}_{thread}" if thread else f"{_PREFIX}{call_id}"


def thread_of(given_id: str) -> str | None:
    """Return what all responses that follow one another have in common; None if this is no id of ours."""
    prefix, _, rest = given_id.partition("_")
    return rest.rpartition("_")[2] or None if prefix + "_" == _PREFIX else None


def item_id(kind: str, number: int, owner_id: str) -> str:
    """Return the id of the response's item `number`."""
    return f"{kind}_{number}_{owner_id.removeprefix(_PREFIX)}"


def owner_of(given_id: str) -> tuple[str, int] | None:
    """Return the response of an item and the item's number in it; None if this is no id of ours."""
    _, number, rest = (*given_id.split("_", 2), "", "")[:3]
    is_ours = rest and number.isascii() and number.isdecimal() and len(number) < 6
    return (_PREFIX + rest, int(number)) if is_ours else None
