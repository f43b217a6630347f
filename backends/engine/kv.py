"""The paged KV cache of one worker as torch tensors. Refuses to know who owns which block."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.engine.runner import ModelSpec


class PagedKV:
    """K and V of all layers, in blocks of `block_tokens`: [layers, blocks, block_tokens, kv_heads, head_dim] each.

    A token's values lie together, so writing is one row copy and reading a sequence is one row copy a block.
    Memory is taken page by page as blocks are first written.
    """

    def __init__(self, spec: ModelSpec, *, blocks: int, block_tokens: int) -> None:
        shape = (spec.layers, blocks, block_tokens, spec.kv_heads, spec.head_dim)
        self.block_tokens = block_tokens
        self._k, self._v = torch.empty(shape), torch.empty(shape)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k and v [T, kv_heads, head_dim] into slots [T]; slot = block · block_tokens + place in the block."""
        self._k[layer].view(-1, *k.shape[1:])[slots] = k
        self._v[layer].view(-1, *v.shape[1:])[slots] = v

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return k and v [length, kv_heads, head_dim] of the sequence that lies in these blocks."""
        k, v = self._k[layer].index_select(0, blocks), self._v[layer].index_select(0, blocks)
        return k.flatten(0, 1)[:length], v.flatten(0, 1)[:length]

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block over all layers."""
        self._k[:, target] = self._k[:, source]
        self._v[:, target] = self._v[:, source]
