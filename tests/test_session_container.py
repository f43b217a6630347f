"""Chunks as bytes: they come back as they were, or as an error."""

from __future__ import annotations

import os
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from sessioncache.container import MAGIC, PREAMBLE, Chunk, Header, head_bytes, read, write
from sessioncache.problems import ChunkError
from sessioncache.vault import Master

MASTER = Master({"k": os.urandom(32)}, current="k")
SECRETS = MASTER.secrets("a", MASTER.create("a"))
HEADER = Header("0123abcd", "weights-1", "exact/1", first=256, tokens=0, sizes=())
TOKENS, LAYERS = [5, 6, 7], [b"layer nought", b"", b"layer two" * 100]
STORED = write(HEADER, TOKENS, LAYERS, SECRETS)


def opened(stored: bytes) -> Chunk:
    """Read the head of a chunk as a cold tier would."""
    return read(stored[: head_bytes(stored[: PREAMBLE.size])], total=len(stored))


def frames(stored: bytes) -> list[bytes]:
    """Open every frame."""
    chunk = opened(stored)
    return [bytes(chunk.open(number, frame, SECRETS)) for number, frame in enumerate(chunk.frames(stored))]


def with_header(change: dict[str, object]) -> bytes:
    """Forge a chunk whose header says something else, with a digest that fits."""
    end = head_bytes(STORED)
    body = orjson.dumps(orjson.loads(STORED[PREAMBLE.size : end]) | change)
    rest = STORED[end:]
    total = PREAMBLE.size + len(body) + len(rest)
    return PREAMBLE.pack(MAGIC, 1, len(body), total, xxh3_64_intdigest(body)) + body + rest


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=256),
    st.lists(st.binary(max_size=300), max_size=6),
)
def test_a_chunk_comes_back_as_it_was(tokens: list[int], layers: list[bytes]) -> None:
    """Token ids and layers, whatever they are."""
    stored = write(HEADER, tokens, layers, SECRETS)

    assert frames(stored)[1:] == layers
    assert opened(stored).header == replace(HEADER, tokens=len(tokens), sizes=opened(stored).header.sizes)


def test_one_layer_can_be_opened_alone() -> None:
    """From the head and the frame's own bytes."""
    chunk = opened(STORED)

    assert chunk.open(3, bytes(chunk.frames(STORED)[3]), SECRETS) == LAYERS[2]


def test_stored_tokens_are_compared_with_the_wanted_ones() -> None:
    """A name that was given to other tokens is an error before any KV is used."""
    chunk = opened(STORED)
    frame = chunk.frames(STORED)[0]

    chunk.check_tokens(frame, TOKENS, SECRETS)
    with pytest.raises(ChunkError, match="other tokens"):
        chunk.check_tokens(frame, [5, 6, 8], SECRETS)


def test_a_frame_opens_only_in_its_own_place() -> None:
    """Layers that changed places, or came from another chunk, do not open."""
    chunk, other = opened(STORED), opened(write(replace(HEADER, name="ffff"), TOKENS, LAYERS, SECRETS))
    sealed = chunk.frames(STORED)[1]

    for reader, frame in ((chunk, 2), (other, 1)):
        with pytest.raises(ChunkError, match="does not open"):
            reader.open(frame, sealed, SECRETS)


@given(st.integers(0, len(STORED) - 1), st.integers(1, 255))
def test_no_altered_byte_goes_unnoticed(at: int, bits: int) -> None:
    """Anywhere in the chunk."""
    altered = bytearray(STORED)
    altered[at] ^= bits

    with pytest.raises(ChunkError):
        frames(bytes(altered))


@given(st.integers(0, len(STORED) - 1))
def test_a_chunk_that_was_cut_off_is_an_error(length: int) -> None:
    """At any length."""
    with pytest.raises(ChunkError):
        frames(STORED[:length])


@given(st.binary(max_size=200))
def test_any_other_bytes_are_an_error(stored: bytes) -> None:
    """Whether they begin like a chunk or not."""
    for forged in (stored, MAGIC + stored):
        with pytest.raises(ChunkError):
            frames(forged)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5},
        {"first": -1},
        {"first": 0.5},
        {"tokens": 0},
        {"tokens": 1 << 40},
        {"tokens": True},
        {"sizes": []},
        {"sizes": [-40, 80]},
        {"sizes": [1 << 62]},
        {"sizes": [40] * 5000},
        {"sizes": 7},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_header_that_lies_is_an_error(change: dict[str, object]) -> None:
    """Before anything is allocated for what it says."""
    with pytest.raises(ChunkError):
        opened(with_header(change))


@pytest.mark.parametrize(
    ("preamble", "says"),
    [
        (PREAMBLE.pack(MAGIC, 2, 10, 100, 0), "version 2"),
        (PREAMBLE.pack(MAGIC, 1, 1 << 30, 1 << 31, 0), "more than any"),
        (PREAMBLE.pack(MAGIC, 1, 10, 1 << 60, 0), "more than any"),
    ],
)
def test_a_preamble_that_asks_for_too_much_is_an_error(preamble: bytes, says: str) -> None:
    """Its numbers are checked before its header is fetched."""
    with pytest.raises(ChunkError, match=says):
        head_bytes(preamble)
