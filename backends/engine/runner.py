"""What the engine asks of whatever computes a step: the native library on CPU, torch on CUDA and as the reference.

Refuses to know scheduling, text and sampling; speaks numpy at its edge so that a native worker needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder-only transformer of the Llama family (Llama, Qwen2/2.5, Qwen3 dense)."""

    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    norm_eps: float
    rope_theta: float
    tied_head: bool
    rope_scale: float = 1.0  # of cosines and sines; see rope.py
    attention_bias: bool = False
    qk_norm: bool = False

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers, at two bytes a value."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Batch:
    """One planned step, ragged: sequence s owns tokens[starts[s]:starts[s + 1]].

    tokens     int32 [T]        token ids to run through the model
    positions  int32 [T]        position of each token in its sequence
    starts     int32 [S + 1]    prefix sums of the sequences' token counts in this step
    lengths    int32 [S]        tokens of each sequence in the KV cache once this step is done
    blocks     int32 [S, B]     block table, padded with -1; token at position p lives in blocks[s, p // block_tokens]
    sampled    int32 [R]        rows of `tokens` whose logits are wanted
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    blocks: NDArray[np.int32]
    sampled: NDArray[np.int32]


class Runner(Protocol):
    """A loaded model with its paged KV cache. Used from the engine thread alone."""

    spec: ModelSpec
    block_tokens: int
    kv_blocks: int

    def forward(self, batch: Batch, best: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Write K and V of the batch's tokens into their blocks; return logits [R, vocabulary] of `batch.sampled`.

        `best` [R] receives what `greedy` would return. A sequence's logits do not depend on who shares its batch.
        Releases the GIL while it computes.
        """
        ...

    def greedy(self, batch: Batch) -> NDArray[np.int32]:
        """Compute the same step; return each sampled row's most likely token, -1 where its logits are not finite."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy one KV block over all layers (copy-on-write)."""
        ...


def best_of(logits: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return each row's first most likely token, -1 where that is not finite; a NaN counts as the most likely."""
    best = logits.argmax(axis=1)
    is_sound = np.isfinite(logits[np.arange(len(best)), best])
    return np.where(is_sound, best, -1).astype(np.int32)
