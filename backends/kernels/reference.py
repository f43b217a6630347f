"""Every op of a decoder step in plain torch, one function an op: the truth that fast kernels are compared with.

Refuses to know models, batches and paged memory. All is fp32: bf16 sums lose enough bits to flip a greedy argmax.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight, over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weightᵀ + bias; x is [T, in], weight [out, in]."""
    return functional.linear(x, weight, bias)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) · up, where gate and up are the two halves of the last dimension."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def rope_table(positions: Tensor, frequencies: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return scale · cos and scale · sin of position · frequency, each [T, 1, head_dim / 2], ready for `rope`."""
    angles = positions.float()[:, None, None] * frequencies
    return angles.cos() * scale, angles.sin() * scale


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (a, b) into (a·cos - b·sin, b·cos + a·sin); a, b are the halves of each head; x is [T, heads, head_dim]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q·kᵀ / sqrt(head_dim), causal) · v for the last T of L positions of one sequence.

    q is [T, heads, head_dim]; k and v are [L, kv_heads, head_dim]; head h reads kv head h // (heads / kv_heads).
    The queries that share a kv head are packed as rows of one matrix, so k and v are never repeated.
    """
    count, heads, head_dim = q.shape
    length, kv_heads, _ = k.shape
    packed = q.view(count, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)
    mask = None if count == 1 else causal_mask(count, length).repeat(heads // kv_heads, 1)
    mixed = functional.scaled_dot_product_attention(packed, k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask)
    return mixed.view(kv_heads, -1, count, head_dim).permute(2, 0, 1, 3).reshape(count, heads * head_dim)


def causal_mask(count: int, length: int) -> Tensor:
    """Return what row t of the last `count` of `length` positions sees, itself and before: [count, length]."""
    return torch.ones(count, length, dtype=torch.bool).tril(length - count)
