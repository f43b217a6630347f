"""A checkpoint as plain fp32 matrices with one full-sequence forward pass whose products can be watched and replaced.

Refuses to know KV caches, batching and what the watcher wants. Torch; used by `tidegate quantize` and its tests.

A unit is what one product reads and one scheme rounds: the merged q, k and v of a layer, its o, its merged gate and up,
its down, the embedding, and the head where it is a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from backends.engine.recipes import Activations
from backends.engine.runner import ModelSpec
from backends.engine.weights import Checkpoint, expected_shapes
from backends.kernels.reference import linear, rms_norm, rope, rope_table, swiglu

Tap = Callable[[str, Tensor, Tensor], None]
"""Told of each product: the unit, its input [..., K] and its output [..., N]."""

CHUNK, FINE_ABOVE = 32, 6
"""Columns that share an int8 scale; how many times the row's RMS their largest is when they get a second digit."""

PARTS = {
    "attention.qkv": ("attention.q", "attention.k", "attention.v"),
    "attention.o": ("attention.o",),
    "ffn.gate_up": ("ffn.gate", "ffn.up"),
    "ffn.down": ("ffn.down",),
}


def units_of(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Name every unit of a model and the checkpoint's matrices that it merges, in the order of the forward pass."""
    units: dict[str, tuple[str, ...]] = {"embed": ("embed.weight",)}
    for layer in range(spec.layers):
        for unit, parts in PARTS.items():
            units[f"layers.{layer}.{unit}"] = tuple(f"layers.{layer}.{part}.weight" for part in parts)
    return units if spec.tied_head else units | {"head": ("head.weight",)}


def rows_of(spec: ModelSpec) -> dict[str, list[int]]:
    """Count the rows of every matrix of every unit."""
    shapes = dict(expected_shapes(spec))
    return {unit: [shapes[name][0] for name in names] for unit, names in units_of(spec).items()}


@dataclass(frozen=True, slots=True)
class Dense:
    """The model: `matrices` by unit, everything else by its checkpoint name."""

    spec: ModelSpec
    matrices: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor]
    frequencies: Tensor
    activations: Activations = "fp32"

    def with_matrices(self, matrices: Mapping[str, Tensor], activations: Activations) -> Dense:
        """Return the same model with some units replaced."""
        return replace(self, matrices={**self.matrices, **matrices}, activations=activations)

    def hidden(self, tokens: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the head's input [windows, T, hidden] of whole windows of tokens [windows, T]."""
        table = rope_table(torch.arange(tokens.shape[1]), self.frequencies, self.spec.rope_scale)
        x = self.matrices["embed"][tokens]
        if tap is not None:
            tap("embed", tokens, x)
        for layer in range(self.spec.layers):
            x = x + self._attend(f"layers.{layer}.", x, table, tap)
            x = x + self._feed(f"layers.{layer}.", x, tap)
        return rms_norm(x, self.vectors["norm.weight"], self.spec.norm_eps)

    def logits(self, hidden: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the logits of head inputs."""
        return self._product("embed" if self.spec.tied_head else "head", hidden, tap, seen_as="head")

    def _attend(self, prefix: str, x: Tensor, table: tuple[Tensor, Tensor], tap: Tap | None) -> Tensor:
        spec = self.spec
        normed = rms_norm(x, self.vectors[prefix + "attention.norm.weight"], spec.norm_eps)
        merged = self._product(prefix + "attention.qkv", normed, tap)
        heads = merged.view(*merged.shape[:-1], -1, spec.head_dim)
        q, k, v = torch.split(heads, [spec.heads, spec.kv_heads, spec.kv_heads], dim=-2)
        if spec.qk_norm:
            q = rms_norm(q, self.vectors[prefix + "attention.q_norm.weight"], spec.norm_eps)
            k = rms_norm(k, self.vectors[prefix + "attention.k_norm.weight"], spec.norm_eps)
        q, k, v = (part.transpose(1, 2) for part in (rope(q, *table), rope(k, *table), v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self._product(prefix + "attention.o", mixed.transpose(1, 2).flatten(-2), tap)

    def _feed(self, prefix: str, x: Tensor, tap: Tap | None) -> Tensor:
        normed = rms_norm(x, self.vectors[prefix + "ffn.norm.weight"], self.spec.norm_eps)
        return self._product(prefix + "ffn.down", swiglu(self._product(prefix + "ffn.gate_up", normed, tap)), tap)

    def _product(self, unit: str, x: Tensor, tap: Tap | None, seen_as: str | None = None) -> Tensor:
        x = rounded_to_int8(x) if self.activations == "int8" else x
        y = linear(x, self.matrices[unit], self.vectors.get(unit + ".bias"))
        if tap is not None:
            tap(seen_as or unit, x, y)
        return y


def rounded_to_int8(x: Tensor) -> Tensor:
    """Return what the kernels see of activations: 8 bits symmetric, one scale for 32 columns of a token.

    32 columns that stand out of their token's row have a second digit, 254 times finer.
    """
    chunks = functional.pad(x, (0, -x.shape[-1] % CHUNK)).reshape(*x.shape[:-1], -1, CHUNK)
    highest = chunks.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    usual = chunks.square().mean((-1, -2), keepdim=True).sqrt()
    step = torch.where(highest > FINE_ABOVE * usual, highest / (127 * 254), highest / 127)
    rounded: Tensor = (chunks / step).round() * step
    return rounded.flatten(-2)[..., : x.shape[-1]]


def open_dense(checkpoint: Checkpoint) -> Dense:
    """Load every tensor of a checkpoint as fp32."""
    spec = checkpoint.spec
    matrices = {
        unit: torch.cat([_tensor(checkpoint, name) for name in names]) for unit, names in units_of(spec).items()
    }
    vectors = {name: _tensor(checkpoint, name) for name in vector_names(spec)}
    if spec.attention_bias:
        for layer in range(spec.layers):
            biases = [_tensor(checkpoint, f"layers.{layer}.attention.{part}.bias") for part in "qkv"]
            vectors[f"layers.{layer}.attention.qkv.bias"] = torch.cat(biases)
    return Dense(spec, matrices, vectors, _frequencies(checkpoint))


def vector_names(spec: ModelSpec) -> list[str]:
    """Name every norm of a model as the checkpoint does."""
    norms = ["attention.norm", "ffn.norm", *(["attention.q_norm", "attention.k_norm"] if spec.qk_norm else [])]
    return ["norm.weight", *(f"layers.{layer}.{norm}.weight" for layer in range(spec.layers) for norm in norms)]


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    return torch.from_numpy(checkpoint.tensor(name))


def _frequencies(checkpoint: Checkpoint) -> Tensor:
    spec, factors = checkpoint.spec, checkpoint.rope_factors
    plain = 1.0 / spec.rope_theta ** (torch.arange(0, spec.head_dim, 2).float() / spec.head_dim)
    return plain if factors is None else plain / torch.from_numpy(factors)
