"""The KV of 256 tokens between the native engine's blocks and bytes: what a codec promises, and the lossless one.

Refuses to know where bytes are stored and who asks for them. What comes back from a store may be anybody's: a payload
is measured before memory is taken for it, and whatever is no payload of this codec is a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from backends.engine.native import NativeRunner
from backends.kernels import cpu

Payload: TypeAlias = "bytes | memoryview[int]"
CHUNK_TOKENS = 256
RUN_TOKENS = 16
"""Tokens whose K and V lie together, head by head, in every block; see kernels/cpu/ops.h."""


class KvCodec(Protocol):
    """Blocks to payloads and back. Both ways may run in a thread beside steps: they touch the named blocks alone."""

    @property
    def id(self) -> str:
        """Name what the payloads can be read by: the codec, its version and a digest of its parameters."""
        ...

    def encode(self, runner: NativeRunner, blocks: Sequence[int], first: int) -> list[bytes]:
        """Return one payload a layer for the 256 tokens from position `first` on, whose first lies in blocks[0]."""
        ...

    def decode(self, runner: NativeRunner, layers: Sequence[Payload], blocks: Sequence[int], first: int) -> None:
        """Write such payloads into blocks. ValueError where they are none: the blocks then hold anything."""
        ...


class ExactCodec:
    """The cache's own bytes, signs and exponents of halves apart from the rest. A restore is the same bit for bit."""

    id = "exact-2"

    def encode(self, runner: NativeRunner, blocks: Sequence[int], first: int) -> list[bytes]:
        """See `KvCodec`."""
        chunk, size = cpu.chunk(*places(runner, blocks, first), first, 0), _layer_bytes(runner)
        packer, planes = zstandard.ZstdCompressor(compression_params=packing()), np.empty(size, np.uint8)
        payloads, cuts = [], (size // 4, size // 2)
        for layer in range(runner.spec.layers):
            runner.read_kv(chunk, layer, planes)
            payloads.append(packed(packer, planes.data, cuts))
        return payloads

    def decode(self, runner: NativeRunner, layers: Sequence[Payload], blocks: Sequence[int], first: int) -> None:
        """See `KvCodec`."""
        chunk, size = cpu.chunk(*places(runner, blocks, first), first, 0), _layer_bytes(runner)
        check_count(runner, layers)
        unpacker = zstandard.ZstdDecompressor()
        for layer, payload in enumerate(layers):
            runner.write_kv(chunk, layer, unpacked(unpacker, payload, size, size))


def places(runner: NativeRunner, blocks: Sequence[int], first: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the block, and the run in it, of each run of a chunk; ValueError when the chunk is not in these blocks."""
    if first < 0 or first % CHUNK_TOKENS or first + CHUNK_TOKENS > runner.spec.context_tokens:
        raise ValueError(f"no chunk begins at position {first} of a context of {runner.spec.context_tokens}")
    positions = first + np.arange(0, CHUNK_TOKENS, RUN_TOKENS, dtype=np.int32)
    at = positions // runner.block_tokens - first // runner.block_tokens
    if len(blocks) <= at[-1]:
        raise ValueError(f"a chunk at position {first} needs {at[-1] + 1} blocks, not {len(blocks)}")
    table = np.asarray(blocks, np.int32)[at]
    if table.min() < 0 or table.max() >= runner.kv_blocks:
        raise ValueError(f"blocks {blocks} are not all among the {runner.kv_blocks} there are")
    return table, positions % runner.block_tokens // RUN_TOKENS


def check_count(runner: NativeRunner, layers: Sequence[Payload]) -> None:
    """Refuse the payloads of a model with another number of layers."""
    if len(layers) != runner.spec.layers:
        raise ValueError(f"{len(layers)} payloads are not those of a model of {runner.spec.layers} layers")


def unpacked(unpacker: zstandard.ZstdDecompressor, payload: Payload, least: int, most: int) -> bytes:
    """Decompress a zstd frame of `least` to `most` bytes; what it claims is read before memory is taken."""
    try:
        claimed = zstandard.frame_content_size(payload)
        if not least <= claimed <= most:
            raise ValueError(f"a payload claims {claimed} bytes where {least} to {most} are due")
        return unpacker.decompress(payload, max_output_size=claimed, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise ValueError(f"a payload is no zstd frame: {exc}") from exc


def packing() -> zstandard.ZstdCompressionParameters:
    """Huffman codes and as few matches as zstd lets one ask for: values are noise, and a match is found by chance.

    For symbols it is 2 % smaller than level 1, and a third faster to write and a tenth to read.
    """
    return zstandard.ZstdCompressionParameters.from_level(1, strategy=1, min_match=7, hash_log=6, window_log=18)


def packed(packer: zstandard.ZstdCompressor, stream: memoryview, cuts: Sequence[int]) -> bytes:
    """Compress a layer's bytes as one frame, a block up to each cut: each has codes of its own, or is kept as it is."""
    frame, start = packer.compressobj(size=len(stream)), 0
    pieces = []
    for cut in cuts:
        pieces += [frame.compress(stream[start:cut]), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
        start = cut
    return b"".join([*pieces, frame.compress(stream[start:]), frame.flush()])


def _layer_bytes(runner: NativeRunner) -> int:
    return CHUNK_TOKENS * runner.spec.kv_heads * cpu.kv_head_bytes(runner.kv_format, runner.spec.head_dim)
