"""Lay out a planned step as the runner reads it. Refuses to know why it was planned so."""

from __future__ import annotations

import numpy as np

from backends.engine.runner import Batch
from batching.scheduler import Chunk


def batch_of(chunks: list[Chunk]) -> Batch:
    """Lay out the chunks of a step as the runner reads them."""
    counts = np.array([chunk.count for chunk in chunks], np.int32)
    starts = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    tokens: list[int] = []
    for chunk in chunks:
        tokens += chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
    firsts = np.array([chunk.start for chunk in chunks], np.int32)
    blocks = np.full((len(chunks), max(len(chunk.sequence.table) for chunk in chunks)), -1, np.int32)
    for row, chunk in enumerate(chunks):
        blocks[row, : len(chunk.sequence.table)] = chunk.sequence.table
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(len(tokens), dtype=np.int32) + np.repeat(firsts - starts[:-1], counts),
        starts=starts,
        lengths=firsts + counts,
        blocks=blocks,
        sampled=starts[1:][[chunk.is_last for chunk in chunks]] - 1,
    )
