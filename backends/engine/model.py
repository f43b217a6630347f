"""The decoder in torch on CPU, fp32: the reference runner. Refuses to know scheduling, text and sampling.

Attention runs for each sequence by itself over its own blocks, so it does not depend on batch mates at all. The matrix
products run over the whole batch, and for another number of rows the library may sum in another order: logits differ
in their last bits (measured: see tests/test_model.py), greedy tokens do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.engine.kv import PagedKV
from backends.engine.runner import Batch, ModelSpec, best_of
from backends.engine.weights import Checkpoint
from backends.kernels.reference import attention, linear, rms_norm, rope, rope_table, swiglu


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer's weights; q, k, v and gate, up are merged so that each pair of products is one."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    ffn_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """A batch as the layers need it, made once a step."""

    slots: Tensor
    cos: Tensor
    sin: Tensor
    tables: list[Tensor]
    starts: list[int]
    lengths: list[int]


class TorchRunner:
    """See `runner.Runner`."""

    def __init__(self, checkpoint: Checkpoint, *, kv_blocks: int, block_tokens: int, threads: int = 0) -> None:
        """Load all weights as fp32; `threads` 0 leaves torch's own choice."""
        if threads:
            torch.set_num_threads(threads)
        self.spec, self.kv_blocks, self.block_tokens = checkpoint.spec, kv_blocks, block_tokens
        self._kv = PagedKV(self.spec, blocks=kv_blocks, block_tokens=block_tokens)
        self._embed, self._norm = _tensor(checkpoint, "embed.weight"), _tensor(checkpoint, "norm.weight")
        self._head = self._embed if self.spec.tied_head else _tensor(checkpoint, "head.weight")
        self._layers = [_layer(checkpoint, f"layers.{layer}.") for layer in range(self.spec.layers)]
        self._frequencies = _frequencies(self.spec, checkpoint.rope_factors)

    @torch.inference_mode()
    def forward(self, batch: Batch, best: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """See `runner.Runner`."""
        step = self._step(batch)
        x = self._embed[torch.from_numpy(batch.tokens)]
        for index, layer in enumerate(self._layers):
            x = x + self._attend(index, layer, x, step)
            x = x + self._feed(layer, x)
        wanted = rms_norm(x[torch.from_numpy(batch.sampled)], self._norm, self.spec.norm_eps)
        logits: NDArray[np.float32] = linear(wanted, self._head).numpy()
        if best is not None:
            best[:] = best_of(logits)
        return logits

    def greedy(self, batch: Batch) -> NDArray[np.int32]:
        """See `runner.Runner`."""
        return best_of(self.forward(batch))

    def copy_block(self, source: int, target: int) -> None:
        """See `runner.Runner`."""
        self._kv.copy_block(source, target)

    def _step(self, batch: Batch) -> Step:
        owners = np.repeat(np.arange(len(batch.lengths)), np.diff(batch.starts))
        blocks = batch.blocks[owners, batch.positions // self.block_tokens].astype(np.int64)
        slots = blocks * self.block_tokens + batch.positions % self.block_tokens
        used = -(-batch.lengths // self.block_tokens)
        tables = [torch.from_numpy(row[:count]) for row, count in zip(batch.blocks, used, strict=True)]
        cos, sin = rope_table(torch.from_numpy(batch.positions), self._frequencies, self.spec.rope_scale)
        return Step(torch.from_numpy(slots), cos, sin, tables, batch.starts.tolist(), batch.lengths.tolist())

    def _attend(self, index: int, layer: Layer, x: Tensor, step: Step) -> Tensor:
        q, k, v = self._project(layer, x)
        q, k = rope(q, step.cos, step.sin), rope(k, step.cos, step.sin)
        self._kv.write(index, step.slots, k, v)
        mixed = torch.empty(len(x), self.spec.heads * self.spec.head_dim)
        for sequence, (table, length) in enumerate(zip(step.tables, step.lengths, strict=True)):
            rows = slice(step.starts[sequence], step.starts[sequence + 1])
            mixed[rows] = attention(q[rows], *self._kv.read(index, table, length))
        return linear(mixed, layer.o, layer.o_bias)

    def _project(self, layer: Layer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.spec
        merged = linear(rms_norm(x, layer.attention_norm, spec.norm_eps), layer.qkv, layer.qkv_bias)
        heads = merged.view(len(x), -1, spec.head_dim)
        q, k, v = heads[:, : spec.heads], heads[:, spec.heads : -spec.kv_heads], heads[:, -spec.kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, spec.norm_eps), rms_norm(k, layer.k_norm, spec.norm_eps)
        return q, k, v

    def _feed(self, layer: Layer, x: Tensor) -> Tensor:
        normed = rms_norm(x, layer.ffn_norm, self.spec.norm_eps)
        return linear(swiglu(linear(normed, layer.gate_up)), layer.down)


def _frequencies(spec: ModelSpec, factors: NDArray[np.float32] | None) -> Tensor:
    """Return theta^(-2j / head_dim) / factor_j, [head_dim / 2]."""
    plain = 1.0 / spec.rope_theta ** (torch.arange(0, spec.head_dim, 2).float() / spec.head_dim)
    return plain if factors is None else plain / torch.from_numpy(factors)


def _layer(checkpoint: Checkpoint, prefix: str) -> Layer:
    def one(name: str) -> Tensor:
        return _tensor(checkpoint, prefix + name)

    def maybe(name: str) -> Tensor | None:
        return one(name) if checkpoint.has(prefix + name) else None

    def merged(*names: str) -> Tensor:
        return torch.cat([one(name) for name in names])

    return Layer(
        attention_norm=one("attention.norm.weight"),
        qkv=merged("attention.q.weight", "attention.k.weight", "attention.v.weight"),
        qkv_bias=merged("attention.q.bias", "attention.k.bias", "attention.v.bias")
        if checkpoint.spec.attention_bias
        else None,
        q_norm=maybe("attention.q_norm.weight"),
        k_norm=maybe("attention.k_norm.weight"),
        o=one("attention.o.weight"),
        o_bias=maybe("attention.o.bias"),
        ffn_norm=one("ffn.norm.weight"),
        gate_up=merged("ffn.gate.weight", "ffn.up.weight"),
        down=one("ffn.down.weight"),
    )


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    return torch.from_numpy(checkpoint.tensor(name))
