"""Drives our native runner for bench/engine.py, which documents the commands: `engine_native.py SOURCE THREADS TOKENS`.

TOKENS is how much KV cache there is; like in the gateway, only what is used takes memory.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.runner import Batch
from backends.engine.weights import open_checkpoint

CHUNK = 512
BLOCK = 16

# On a busy machine the time that others take is no measure of us; see bench/engine.py.
clock = time.process_time if os.environ.get("CLOCK") == "cpu" else time.perf_counter


class Driver:
    """One runner; sequence s of a decode owns its own run of blocks."""

    def __init__(self, runner: NativeRunner) -> None:
        self._runner, self._filled = runner, (0, 0)

    def prefill(self, count: int) -> str:
        """Read one prompt in chunks; milliseconds until its logits are there."""
        began = clock()
        self._read(count)
        return f"{1000 * (clock() - began):.3f}"

    def decode(self, size: int, length: int, count: int) -> str:
        """Step `size` sequences of `length` tokens on; the median and the best milliseconds of a step."""
        self._fill(size, length, width := -(-(length + count) // BLOCK))
        table = np.arange(size * width, dtype=np.int32).reshape(size, width)
        times = []
        for step in range(count):
            batch = _batch(_tokens(length + step, size), np.full(size, length + step, np.int32), table, rows=size)
            began = clock()
            self._runner.forward(batch)
            times.append(1000 * (clock() - began))
        return f"{statistics.median(times):.3f} {min(times):.3f}"

    def score(self, window: int, path: str) -> str:
        """Mean negative log-likelihood of each next token of the windows in a file of int32."""
        losses = [self._loss(ids) for ids in np.fromfile(path, np.int32).reshape(-1, window)]
        return f"{np.mean(losses):.6f}"

    def _read(self, count: int) -> None:
        """Compute positions 0 to `count` of sequence 0 in the first blocks."""
        self._filled = (0, 0)
        table = np.arange(-(-count // BLOCK), dtype=np.int32)[None]
        for first in range(0, count, CHUNK):
            positions = np.arange(first, min(first + CHUNK, count), dtype=np.int32)
            self._runner.forward(_batch((positions * 37 + 11) % 40000, positions, table, rows=1))

    def _fill(self, size: int, length: int, width: int) -> None:
        """Give `size` sequences the same context, each in blocks of its own."""
        if self._filled != (length, width):
            self._read(length)
            self._filled = (length, width)
        for sequence in range(1, size):
            for block in range(-(-length // BLOCK)):
                self._runner.copy_block(block, sequence * width + block)

    def _loss(self, ids: NDArray[np.int32]) -> float:
        positions = np.arange(len(ids), dtype=np.int32)
        table = np.arange(-(-len(ids) // BLOCK), dtype=np.int32)[None]
        logits = self._runner.forward(_batch(ids, positions, table, rows=len(ids)))[:-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        said = np.take_along_axis(logits, ids[1:, None].astype(np.int64), axis=1)[:, 0]
        self._filled = (0, 0)
        return float((np.log(np.exp(logits).sum(axis=1)) - said).mean())


def _tokens(position: int, size: int) -> NDArray[np.int32]:
    return ((position * 37 + np.arange(size) * 101 + 11) % 40000).astype(np.int32)


def _batch(tokens: NDArray[np.int32], positions: NDArray[np.int32], table: NDArray[np.int32], *, rows: int) -> Batch:
    """Split `tokens` evenly over the sequences of `table`; the last `rows` of them give logits."""
    count, sequences = len(tokens), len(table)
    share = count // sequences
    return Batch(
        tokens=tokens.astype(np.int32),
        positions=positions,
        starts=np.arange(0, count + 1, share, dtype=np.int32),
        lengths=positions[share - 1 :: share] + 1,
        blocks=table,
        sampled=np.arange(count - rows, count, dtype=np.int32),
    )


def answers(driver: Driver) -> Iterator[str]:
    """Obey standard input."""
    for line in sys.stdin:
        match line.split():
            case ["prefill", count]:
                yield driver.prefill(int(count))
            case ["decode", size, length, count]:
                yield driver.decode(int(size), int(length), int(count))
            case ["score", window, path]:
                yield driver.score(int(window), path)


def main() -> None:
    """Load, say so, obey."""
    source, threads, tokens = sys.argv[1:]
    weights = Quantised(open_checkpoint(source))
    with NativeRunner(weights, kv_blocks=int(tokens) // BLOCK, block_tokens=BLOCK, threads=int(threads)) as runner:
        print(f"ready {runner.weight_bytes}", flush=True)
        for answer in answers(Driver(runner)):
            print(answer, flush=True)


if __name__ == "__main__":
    main()
