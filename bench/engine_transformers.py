"""Drives transformers in fp32 for bench/engine.py, which documents the commands; arguments: GGUF THREADS."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging

# On a busy machine the time that others take is no measure of us; see bench/engine.py.
clock = time.process_time if os.environ.get("CLOCK") == "cpu" else time.perf_counter


class Driver:
    """One model; a decode's context is computed once and repeated over the batch."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def prefill(self, count: int) -> str:
        """Read one prompt; milliseconds."""
        began = clock()
        self._step(_tokens(torch.arange(count), 1), DynamicCache())
        return f"{1000 * (clock() - began):.3f}"

    def decode(self, size: int, length: int, count: int) -> str:
        """Step `size` sequences of `length` tokens on; the median and the best milliseconds of a step."""
        cache, times = DynamicCache(), []
        self._step(_tokens(torch.arange(length), 1), cache)
        cache.batch_repeat_interleave(size)
        for step in range(count):
            began = clock()
            self._step(_tokens(torch.tensor([length + step]), size), cache)
            times.append(1000 * (clock() - began))
        return f"{statistics.median(times):.3f} {min(times):.3f}"

    def score(self, window: int, path: str) -> str:
        """Mean negative log-likelihood of each next token of the windows in a file of int32."""
        losses = []
        for ids in np.fromfile(path, np.int32).reshape(-1, window):
            tokens = torch.from_numpy(ids.astype(np.int64))[None]
            logits = self._model(input_ids=tokens).logits[0, :-1]
            losses.append(float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:])))
        return f"{np.mean(losses):.6f}"

    def _step(self, tokens: Tensor, cache: DynamicCache) -> None:
        self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _tokens(positions: Tensor, size: int) -> Tensor:
    return (positions * 37 + torch.arange(size)[:, None] * 101 + 11) % 40000


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


@torch.inference_mode()
def main() -> None:
    """Load, say so, obey."""
    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    print("ready", flush=True)
    for answer in answers(Driver(model.eval())):
        print(answer, flush=True)


if __name__ == "__main__":
    main()
