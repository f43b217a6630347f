"""Manifests: sessions move on, never back, and erased ones stay erased."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessioncache.manifest import Manifest, erased, moved_on, read, written
from sessioncache.problems import ChunkError

FRESH = Manifest("s", "weights-1", created_s=100.0, used_s=100.0)


def test_a_session_moves_on_from_what_its_writer_has_seen() -> None:
    """To any chunks: conversations are edited, too."""
    first = moved_on(FRESH, ["a", "b"], 512, seen_s=105.0, used_s=110.0)
    assert first is not None

    second = moved_on(first, ["a", "c"], 530, seen_s=115.0, used_s=120.0)

    assert second == replace(FRESH, version=2, chunks=("a", "c"), tokens=530, used_s=120.0, left=("b",))


def test_a_writer_that_was_paused_moves_nothing_back() -> None:
    """What it saved is the session's all the same, to be swept and erased with it."""
    now = moved_on(FRESH, ["a", "b"], 512, seen_s=105.0, used_s=110.0)
    assert now is not None

    late = moved_on(now, ["a", "x"], 512, seen_s=109.0, used_s=900.0)

    assert late == replace(now, version=2, left=("x",))


def test_a_clock_that_was_wrong_holds_no_session_for_good() -> None:
    """One that was used in the future moves on."""
    now = moved_on(replace(FRESH, used_s=1e12), ["a"], 256, seen_s=109.0, used_s=110.0)

    assert now is not None
    assert now.chunks == ("a",)


def test_an_erased_session_stays_erased() -> None:
    """A late write finds the tombstone, whatever it has seen."""
    gone = erased(FRESH, 130.0)

    assert (gone.is_erased, gone.chunks) == (True, ())
    assert moved_on(gone, ["a"], 256, seen_s=135.0, used_s=140.0) is None


def test_a_clock_that_jumps_back_makes_no_session_older() -> None:
    """By a write."""
    now = moved_on(FRESH, [], 0, seen_s=50.0, used_s=50.0)
    assert now is not None
    assert now.used_s == 100.0


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
        {"left": 5},
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


def test_a_field_of_another_version_is_left_alone() -> None:
    """A store that is older or newer than the writer reads what it knows."""
    assert read(orjson.dumps(orjson.loads(written(FRESH)) | {"unknown": 1})) == FRESH
