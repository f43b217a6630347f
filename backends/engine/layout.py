"""Lay out a planned step as the runner reads it. Refuses to know why it was planned so.

At batch 32 this is part of every token: lists and one conversion each cost 25 µs, an array operation a row 90.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from backends.engine.runner import Batch
from batching.scheduler import Chunk

NO_BLOCK = b"\xff"  # -1 in every byte


def batch_of(chunks: Sequence[Chunk]) -> Batch:
    """Lay out the chunks of a step as the runner reads them."""
    tokens: list[int] = []
    positions: list[int] = []
    for chunk in chunks:
        start, end = chunk.start, chunk.start + chunk.count
        tokens += chunk.sequence.tokens[start:end]
        tokens += chunk.draft
        positions += range(start, end)
    ends = list(accumulate(chunk.count for chunk in chunks))
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        starts=np.array([0, *ends], np.int32),
        lengths=np.array([chunk.start + chunk.count for chunk in chunks], np.int32),
        blocks=blocks_of(chunks),
        sampled=np.array(rows_of(chunks, ends), np.int32),
    )


def rows_of(chunks: Sequence[Chunk], ends: Sequence[int]) -> list[int]:
    """Return the rows after which a token can be sampled: the last of a last chunk, and those before its guesses."""
    rows: list[int] = []
    for chunk, end in zip(chunks, ends, strict=True):
        if chunk.is_last:
            rows += range(end - 1 - len(chunk.draft), end)
    return rows


def blocks_of(chunks: Sequence[Chunk]) -> NDArray[np.int32]:
    """Copy the block tables as bytes: a long context has hundreds of blocks a sequence."""
    tables = [chunk.sequence.table for chunk in chunks]
    width = max(map(len, tables))
    rows = bytearray().join([table.tobytes().ljust(4 * width, NO_BLOCK) for table in tables])
    return np.frombuffer(rows, np.int32).reshape(len(tables), width)
