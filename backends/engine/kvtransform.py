"""The calibrated codec: K before its rotation and V, each through a transform into symbols, and those through zstd.

Refuses to know how transforms come about. The arithmetic is in kernels/cpu/kvcodec.h, a call for a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from backends.engine.kvchunk import CHUNK_TOKENS, Payload, check_count, packed, packing, places, unpacked
from backends.engine.kvprofile import VERSION, Profile, Transform
from backends.engine.native import NativeRunner
from backends.kernels import cpu

SINKS = 4
"""First tokens of a sequence that are kept as they are: attention leans on them, and they fit no statistics."""

PARTS = 6
"""Zstd blocks of a transform's symbols. Their channels go by variance, and each block has its own Huffman table."""


class TransformCodec:
    """See `KvCodec`. For caches in fp16; the profile must be of the runner's model."""

    def __init__(self, profile: Profile) -> None:
        self.id = f"{profile.name}-{VERSION}-{profile.digest}"
        self._kept: list[NDArray[Any]] = []
        shape, count = profile.shape, len(profile.transforms)
        transforms = (cpu.Transform * count)(*map(self._native, profile.transforms))
        self._native_codec = cpu.KvCodec(transforms, shape.layers, shape.kv_heads, shape.head_dim, shape.group_heads)
        self._row_bytes = 1 + 4 * shape.kv_heads * shape.head_dim
        layers = (profile.transforms[at : at + shape.parts] for at in range(0, count, shape.parts))
        each = [[transform.kept for transform in layer] for layer in layers]
        self._cuts = [_cuts(kept) for kept in each]
        self._symbol_bytes = [sum(kept) * CHUNK_TOKENS for kept in each]

    def encode(self, runner: NativeRunner, blocks: Sequence[int], first: int) -> list[bytes]:
        """See `KvCodec`."""
        table, runs = places(runner, blocks, first)
        out = np.empty((runner.spec.layers, max(map(self._most, self._symbol_bytes))), np.uint8)
        lengths = runner.encode_kv(self._native_codec, cpu.chunk(table, runs, first, SINKS), out)
        packer = zstandard.ZstdCompressor(compression_params=packing())
        rows = zip(out, lengths, self._cuts, strict=True)
        return [packed(packer, row[:length].data, cuts) for row, length, cuts in rows]

    def decode(self, runner: NativeRunner, layers: Sequence[Payload], blocks: Sequence[int], first: int) -> None:
        """See `KvCodec`."""
        table, runs = places(runner, blocks, first)
        check_count(runner, layers)
        unpacker, symbols = zstandard.ZstdDecompressor(), zip(layers, self._symbol_bytes, strict=True)
        streams = [unpacked(unpacker, payload, size, self._most(size)) for payload, size in symbols]
        try:
            runner.decode_kv(self._native_codec, cpu.chunk(table, runs, first, SINKS), streams)
        except cpu.NativeError as exc:
            raise ValueError(f"a payload is none of {self.id}: {exc}") from exc

    def _most(self, symbol_bytes: int) -> int:
        """Bound a layer's bytes; see kernels/cpu/kvcodec.h."""
        return 4 + symbol_bytes + 4096 * 5 + CHUNK_TOKENS * self._row_bytes

    def _native(self, transform: Transform) -> cpu.Transform:
        sums = transform.decode.sum(1, dtype=np.int64).astype(np.float32)
        quads = transform.decode.reshape(len(transform.mean), -1, 4).transpose(1, 0, 2)
        parts = (transform.mean, transform.scales, sums, _padded(transform.encode.T), _padded(quads))
        self._kept += parts
        return cpu.Transform(*(part.ctypes.data for part in parts), len(transform.mean), transform.kept)


def _padded(matrix: NDArray[Any]) -> NDArray[Any]:
    """Lay a matrix out flat, with the 64 bytes behind it that the kernels read and drop."""
    return np.concatenate([matrix.ravel(), np.zeros(64 // matrix.itemsize, matrix.dtype)])


def _cuts(kept: Sequence[int]) -> tuple[int, ...]:
    """Return where blocks of symbols end in a layer's bytes: `PARTS` a transform, at whole quads of channels."""
    cuts, start = [], 4
    for count in kept:
        cuts += [start + CHUNK_TOKENS * (count // 4 * part // PARTS * 4) for part in range(1, PARTS + 1)]
        start += CHUNK_TOKENS * count
    return tuple(dict.fromkeys(cuts))
