"""Server-sent events: whatever the split and the line ends, the same events come out, within a bound."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sse import Event, EventReader, SseError

LIMIT = 1000
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12).map(str.encode)
EVENTS = st.lists(st.builds(Event, st.lists(TEXTS, min_size=1, max_size=3).map(b"\n".join), TEXTS), max_size=5)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


def read(pieces: list[bytes], limit: int = LIMIT) -> list[Event]:
    """Feed pieces one by one."""
    reader = EventReader(limit)
    return [event for piece in pieces for event in reader.feed(piece)]


def written(event: Event, end: bytes) -> bytes:
    """Write an event with a comment and fields that mean nothing to us."""
    kind = [b"event: " + event.kind] if event.kind else []
    lines = [b": ping", *kind, b"id: 7", *(b"data: " + line for line in event.data.split(b"\n")), b"retry: 3", b"", b""]
    return end.join(lines)


@given(events=EVENTS, end=ENDS, cuts=st.lists(st.integers(0, 500), max_size=12))
def test_any_split_gives_the_same_events(events: list[Event], end: bytes, cuts: list[int]) -> None:
    """What was written is read, wherever the bytes are cut, also inside CRLF and inside a character."""
    whole = b"".join(written(event, end) for event in events)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]

    pieces = [whole[start:stop] for start, stop in pairwise(places)]

    assert read(pieces) == events


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_garbage_gives_the_same_in_any_split(garbage: bytes, cuts: list[int]) -> None:
    """Bytes that are no events do no harm, and mean the same however they come."""
    places = [0, *sorted(min(cut, len(garbage)) for cut in cuts), len(garbage)]

    pieces = [garbage[start:stop] for start, stop in pairwise(places)]

    assert read(pieces) == read([garbage])


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (b"data:x\n\n", [Event(b"x")]),
        (b"data:  x \n\n", [Event(b" x ")]),
        (b"data\n\n", [Event(b"")]),
        (b"\xef\xbb\xbfdata: x\n\n", [Event(b"x")]),
        (b"event: ping\n\ndata: x\n\n", [Event(b"x")]),
        (b"data: a\ndata: b\n\n", [Event(b"a\nb")]),
        (b": nothing\n\n\n\n", []),
        (b"data: half", []),
        (b"data: line\n", []),
        (b"data: caf\xc3\xa9\x0b\x0c\x1c\xe2\x80\xa8x\n\n", [Event(b"caf\xc3\xa9\x0b\x0c\x1c\xe2\x80\xa8x")]),
    ],
)
def test_the_corners_of_the_format(sent: bytes, events: list[Event]) -> None:
    """A missing space, a missing colon, a byte order mark, an event without data, one that never ends."""
    assert read([sent]) == events
    assert read([bytes([byte]) for byte in sent]) == events


def test_an_event_is_given_as_soon_as_its_blank_line_begins() -> None:
    """Nobody waits for the LF after a CR, which may never come."""
    reader = EventReader(LIMIT)

    assert list(reader.feed(b"data: x\r\n\r")) == [Event(b"x")]
    assert list(reader.feed(b"\ndata: y\r\r")) == [Event(b"y")]


@pytest.mark.parametrize("sent", [b"x" * 600, b"data: " + b"x" * 600 + b"\n"])
def test_an_endless_event_is_refused(sent: bytes) -> None:
    """Whether it has one endless line or endless lines, memory stays bounded."""
    with pytest.raises(SseError, match="larger than 1000 bytes"):
        read([sent, sent])


def test_comments_may_come_for_ever() -> None:
    """A server that keeps a connection alive by comments is not one that sends too much."""
    assert read([b": still here\n"] * 200 + [b"data: x\n\n"]) == [Event(b"x")]
