"""Whether restored KV says what computed KV would: the end of a restored prefix computed once more, to compare.

The last tokens are computed anew over the restored beginning; then each of the very last is computed alone over nothing
but restored KV. Where the two do not agree on the token that follows, the restore has changed something.

Refuses to know stores and codecs. Used between two steps, as the engine is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.engine import Engine
from backends.engine.runner import Batch

ANEW = 64  # tokens that are computed once more
COMPARED = 16  # of them; they lie in one block, whatever its size
SPARE_SHARE = 8


def recheck(engine: Engine, tokens: Sequence[int], chain: Sequence[bytes]) -> int | None:
    """Count on how many of COMPARED tokens the two disagree; None where a block is gone or none can be spared.

    `tokens` are those of `chain`'s full blocks, ANEW or more.
    """
    blocks, size = engine.blocks, engine.runner.block_tokens
    ends = -(-ANEW // size)
    if blocks.spare - ends - COMPARED < blocks.total // SPARE_SHARE:
        return None
    if (table := engine.lending.hold(chain)) is None:
        return None
    taken = [blocks.take() for _ in range(ends + COMPARED)]
    try:
        for source, target in zip([*table[-ends:], *[table[-1]] * COMPARED], taken, strict=True):
            engine.runner.copy_block(source, target)
        anew = engine.runner.greedy(_anew(tokens, [*table[:-ends], *taken[:ends]])).copy()
        alone = engine.runner.greedy(_alone(tokens, [[*table[:-1], block] for block in taken[ends:]]))
        return int((anew != alone).sum())
    finally:
        blocks.release(taken)
        engine.lending.release(table)


def _anew(tokens: Sequence[int], table: list[int]) -> Batch:
    """Compute the last ANEW tokens together."""
    end = len(tokens)
    return Batch(
        tokens=np.array(tokens[-ANEW:], np.int32),
        positions=np.arange(end - ANEW, end, dtype=np.int32),
        starts=np.array([0, ANEW], np.int32),
        lengths=np.array([end], np.int32),
        blocks=np.array([table], np.int32),
        sampled=np.arange(ANEW - COMPARED, ANEW, dtype=np.int32),
    )


def _alone(tokens: Sequence[int], tables: list[list[int]]) -> Batch:
    """Compute each of the last COMPARED tokens as the end of a sequence of its own."""
    positions = np.arange(len(tokens) - COMPARED, len(tokens), dtype=np.int32)
    return Batch(
        tokens=np.array(tokens[-COMPARED:], np.int32),
        positions=positions,
        starts=np.arange(COMPARED + 1, dtype=np.int32),
        lengths=positions + 1,
        blocks=np.array(tables, np.int32),
        sampled=np.arange(COMPARED, dtype=np.int32),
    )
