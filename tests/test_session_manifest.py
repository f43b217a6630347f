"""Manifests: sessions move on, never back, and erased ones stay erased."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessioncache.manifest import Lease, Manifest, erased, is_cold, leased, moved_on, read, touched, written
from sessioncache.problems import ChunkError

FRESH = Manifest("s", "weights-1", created_s=100.0, used_s=100.0)


def test_a_session_moves_on_from_what_its_writer_has_seen() -> None:
    """To any chunks: conversations are edited, too."""
    first = moved_on(FRESH, FRESH, ["a", "b"], 512, fence=1, used_s=110.0)
    assert first is not None

    second = moved_on(first, first, ["a", "c"], 530, fence=1, used_s=120.0)

    assert second == replace(FRESH, version=2, fence=1, chunks=("a", "c"), tokens=530, used_s=120.0, left=("b",))


def test_of_two_writers_that_saw_the_same_one_is_told_to_look_again() -> None:
    """Whoever comes second."""
    first = moved_on(FRESH, FRESH, ["a"], 256, fence=1, used_s=110.0)
    assert first is not None

    assert moved_on(first, FRESH, ["b"], 256, fence=1, used_s=110.0) is None


def test_a_writer_whose_lease_went_to_another_cannot_write() -> None:
    """However long it slept, its fencing token is lower than one that has written."""
    slept = leased(None, "w1", now_s=0.0, length_s=15.0)
    woke = leased(slept, "w2", now_s=20.0, length_s=15.0)
    assert slept is not None
    assert woke is not None
    now = moved_on(FRESH, FRESH, ["a"], 256, fence=woke.fence, used_s=20.0)
    assert now is not None

    assert moved_on(now, now, ["b"], 256, fence=slept.fence, used_s=21.0) is None


def test_a_lease_is_given_to_one_at_a_time() -> None:
    """Its holder may renew it; others wait until it is over."""
    held = Lease("w1", 3, until_s=15.0)

    assert leased(held, "w2", now_s=14.9, length_s=15.0) is None
    assert leased(held, "w1", now_s=14.9, length_s=15.0) == Lease("w1", 3, 29.9)
    assert leased(held, "w2", now_s=15.0, length_s=15.0) == Lease("w2", 4, 30.0)


def test_an_erased_session_stays_erased() -> None:
    """A late write finds the tombstone, whatever it has seen."""
    gone = erased(FRESH, 130.0)

    assert (gone.is_erased, gone.chunks) == (True, ())
    assert moved_on(gone, gone, ["a"], 256, fence=9, used_s=140.0) is None
    assert touched(gone, 150.0) is gone


def test_a_clock_that_jumps_back_makes_no_session_older() -> None:
    """Neither by use nor by a write."""
    assert touched(FRESH, 50.0) is FRESH
    now = moved_on(FRESH, FRESH, [], 0, fence=1, used_s=50.0)
    assert now is not None
    assert now.used_s == 100.0


def test_a_session_is_cold_once_it_was_idle_long_enough() -> None:
    """Not a second earlier, and a tombstone never."""
    assert not is_cold(FRESH, 100.0 + 2099, 2100)
    assert is_cold(FRESH, 100.0 + 2100, 2100)
    assert not is_cold(erased(FRESH, 100.0), 9999.0, 2100)


@given(
    st.builds(
        Manifest,
        session=st.text(),
        model=st.text(),
        version=st.integers(0, 2**53),
        chunks=st.lists(st.text()).map(tuple),
        used_s=st.floats(0, 1e10),
        erased_s=st.none() | st.floats(0, 1e10),
    )
)
def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    """Any of them."""
    assert read(written(manifest)) == manifest


@pytest.mark.parametrize(
    "change",
    [
        {"version": -1},
        {"version": 0.5},
        {"tokens": "many"},
        {"chunks": 5},
        {"chunks": [1]},
        {"used_s": "now"},
        {"erased_s": []},
        {"session": None},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_manifest_that_is_none_is_an_error(change: dict[str, object]) -> None:
    """Each field is checked."""
    with pytest.raises(ChunkError):
        read(orjson.dumps(orjson.loads(written(FRESH)) | change))


@pytest.mark.parametrize("stored", [b"", b"[]", b"\xff", b"{}", b" " * (1 << 20) + b" "], ids=lambda b: repr(b[:4]))
def test_other_bytes_are_no_manifest(stored: bytes) -> None:
    """Nor are too many."""
    with pytest.raises(ChunkError):
        read(stored)
