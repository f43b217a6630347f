"""The CPU form of `Runner`: quantised weights mapped or packed once, every step one call into the native library.

Refuses to know scheduling, text and sampling, and never imports torch.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from backends.engine.packing import ALIGNMENT, Panels, pack, panel_shape
from backends.engine.quant import QuantTensor
from backends.engine.runner import Batch, ModelSpec
from backends.kernels import cpu
from backends.kernels.cpu import library

_HUGE = 2 << 20
_MATRICES = {
    "q": "attention.q",
    "k": "attention.k",
    "v": "attention.v",
    "o": "attention.o",
    "gate": "ffn.gate",
    "up": "ffn.up",
    "down": "ffn.down",
}


class Weights(Protocol):
    """A quantised model as the runner wants it: matrices by their codes or laid out already, vectors in fp32."""

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        ...

    @property
    def rope_factors(self) -> NDArray[np.float32] | None:
        """Divisors of the rope frequencies, [head_dim / 2]; None when they are plain."""
        ...

    def matrix(self, name: str) -> QuantTensor | Panels:
        """Return the matrix `name`, rows of q and k in the half-split order of HF."""
        ...

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return the norm or bias `name`."""
        ...


class NativeRunner:
    """A model in the native library with its paged KV cache. See `Runner`."""

    def __init__(
        self,
        weights: Weights,
        *,
        kv_blocks: int,
        block_tokens: int = 16,
        threads: int = 0,
        isa: cpu.Isa = "best",
        kv_format: cpu.KvFormat = "fp16",
    ) -> None:
        self.spec, self.kv_blocks, self.block_tokens = weights.spec, kv_blocks, block_tokens
        _check_shape(self.spec, kv_blocks, block_tokens)
        self.kv_format = kv_format
        self._stride = -(-self.spec.vocabulary // cpu.LANES) * cpu.LANES
        self._logits = np.empty((0, self._stride), np.float32)
        self._kept: list[Any] = []
        self._weight_bytes = 0
        self._arena = _Arena(_most_bytes(self.spec))
        self._kv = _zeroed(kv_blocks * block_tokens * self._token_bytes(kv_format))
        self._engine = self._open(self._model(weights), threads, isa)

    def forward(self, batch: Batch, best: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Run the step; the logits stay valid until the next call."""
        count = len(batch.sampled)
        if count > len(self._logits):
            self._logits = np.empty((count, self._stride), np.float32)
        self._step(batch, logits=self._logits, chosen=best)
        return self._logits[:count, : self.spec.vocabulary]

    def greedy(self, batch: Batch) -> NDArray[np.int32]:
        """Run the step; return the most likely token of each sampled row and nothing else."""
        chosen = np.empty(len(batch.sampled), np.int32)
        self._step(batch, chosen=chosen)
        return chosen

    def queries(self, batch: Batch) -> NDArray[np.float32]:
        """Run the step; return its queries [layers, T, heads, head_dim] before norm and rotation, for calibration."""
        shown = np.empty((self.spec.layers, len(batch.tokens), self.spec.heads, self.spec.head_dim), np.float32)
        self._step(batch, chosen=np.empty(len(batch.sampled), np.int32), shown=shown)
        return shown

    def read_kv(self, chunk: cpu.Chunk, layer: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with one layer of a chunk as the cache has it, in planes. May run beside a step."""
        at = cpu.address(out, np.uint8, out.size)
        status = library().tg_read_kv(self._opened(), ctypes.addressof(chunk), layer, at, out.size)
        cpu.check(status, "read_kv")

    def write_kv(self, chunk: cpu.Chunk, layer: int, planes: bytes) -> None:
        """Write one layer of a chunk from such bytes into its blocks. May run beside a step that does not use them."""
        status = library().tg_write_kv(self._opened(), ctypes.addressof(chunk), layer, planes, len(planes))
        cpu.check(status, "write_kv")

    def encode_kv(self, codec: cpu.KvCodec, chunk: cpu.Chunk, out: NDArray[np.uint8]) -> list[int]:
        """Write each layer's bytes of a chunk into its row of `out`; return how many. May run beside a step."""
        lengths = np.empty(self.spec.layers, np.int64)
        status = library().tg_encode_kv(
            self._opened(),
            ctypes.addressof(codec),
            ctypes.addressof(chunk),
            cpu.address(out, np.uint8, self.spec.layers),
            out.shape[1],
            lengths.ctypes.data,
        )
        cpu.check(status, "encode_kv")
        return [int(length) for length in lengths]

    def decode_kv(self, codec: cpu.KvCodec, chunk: cpu.Chunk, layers: Sequence[bytes]) -> None:
        """Write a chunk from such bytes into its blocks. May run beside a step that does not use them."""
        streams = (ctypes.c_char_p * len(layers))(*layers)
        lengths = np.array([len(layer) for layer in layers], np.int64)
        status = library().tg_decode_kv(
            self._opened(), ctypes.addressof(codec), ctypes.addressof(chunk), streams, lengths.ctypes.data
        )
        cpu.check(status, "decode_kv")

    def copy_block(self, source: int, target: int) -> None:
        """Copy one KV block over all layers (copy-on-write)."""
        cpu.check(library().tg_copy_block(self._engine, source, target), "copy_block")

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads, mapped or packed; a tied matrix counts once because it is stored once."""
        return self._weight_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache; pages are taken as blocks are first written."""
        return self._kv.nbytes

    @property
    def cache(self) -> NDArray[np.uint8]:
        """The KV cache as [layers, kv_blocks, kv_heads, runs of 16 tokens, bytes of a run]; see kernels/cpu/ops.h."""
        return self._kv.reshape(self.spec.layers, self.kv_blocks, self.spec.kv_heads, self.block_tokens // 16, -1)

    def close(self) -> None:
        """Stop the threads and free the library's memory; calling it twice is fine."""
        engine, self._engine = self._engine, None
        if engine is not None:
            library().tg_close(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _token_bytes(self, kv_format: cpu.KvFormat) -> int:
        return self.spec.layers * self.spec.kv_heads * cpu.kv_head_bytes(kv_format, self.spec.head_dim)

    def _step(
        self,
        batch: Batch,
        logits: NDArray[np.float32] | None = None,
        chosen: NDArray[np.int32] | None = None,
        shown: NDArray[np.float32] | None = None,
    ) -> None:
        self._opened()
        tokens, sequences, rows = len(batch.tokens), len(batch.lengths), len(batch.sampled)
        step = cpu.Step(
            cpu.address(batch.tokens, np.int32, tokens),
            cpu.address(batch.positions, np.int32, tokens),
            cpu.address(batch.starts, np.int32, sequences + 1),
            cpu.address(batch.lengths, np.int32, sequences),
            cpu.address(batch.blocks, np.int32, sequences),
            cpu.address(batch.sampled, np.int32, rows),
            tokens,
            sequences,
            batch.blocks.shape[1],
            rows,
            None if logits is None else logits.ctypes.data,
            self._stride,
            None if chosen is None else chosen.ctypes.data,
            None if shown is None else shown.ctypes.data,
        )
        cpu.check(library().tg_step(self._engine, ctypes.addressof(step)), "step")

    def _opened(self) -> int:
        if self._engine is None:
            raise cpu.NativeError("the runner is closed")
        return self._engine

    def _open(self, model: cpu.Model, threads: int, isa: cpu.Isa) -> int | None:
        count = threads or len(cpu.allowed_cores())
        engine = ctypes.c_void_p()
        opened = library().tg_open(ctypes.byref(model), cpu.ISA[isa], count, ctypes.byref(engine))
        cpu.check(opened, "open")
        return engine.value

    def _model(self, weights: Weights) -> cpu.Model:
        spec = self.spec
        layers = (cpu.Layer * spec.layers)(*(self._layer(weights, f"layers.{i}.") for i in range(spec.layers)))
        cosines, sines = rope_tables(spec, weights.rope_factors)
        embed = self._linear(weights.matrix("embed.weight"))
        return cpu.Model(
            spec.layers,
            spec.hidden,
            spec.ffn,
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            spec.vocabulary,
            spec.context_tokens,
            spec.norm_eps,
            self.block_tokens,
            self.kv_blocks,
            cpu.KV_BITS[self.kv_format],
            self._vector(weights.vector("norm.weight")),
            self._vector(cosines),
            self._vector(sines),
            layers,
            embed,
            embed if spec.tied_head else self._linear(weights.matrix("head.weight")),
            self._kv.ctypes.data,
            self._kv.nbytes,
        )

    def _layer(self, weights: Weights, prefix: str) -> cpu.Layer:
        spec, vector = self.spec, weights.vector
        layer = cpu.Layer(
            self._vector(vector(prefix + "attention.norm.weight")),
            self._vector(vector(prefix + "ffn.norm.weight")),
            self._vector(vector(prefix + "attention.q_norm.weight")) if spec.qk_norm else None,
            self._vector(vector(prefix + "attention.k_norm.weight")) if spec.qk_norm else None,
        )
        for field, name in _MATRICES.items():
            biased = spec.attention_bias and field in "qkv"
            bias = vector(f"{prefix}{name}.bias") if biased else None
            setattr(layer, field, self._linear(weights.matrix(f"{prefix}{name}.weight"), bias))
        return layer

    def _linear(self, matrix: QuantTensor | Panels, bias: NDArray[np.float32] | None = None) -> cpu.Linear:
        panels = self._placed(matrix)
        self._kept.append(panels.bytes)
        self._weight_bytes += panels.bytes.nbytes
        return cpu.Linear(
            panels.bytes.ctypes.data,
            panels.bytes.nbytes,
            None if bias is None else self._vector(bias),
            panels.rows,
            panels.columns,
            panels.scheme.bits,
            panels.scheme.group,
            not panels.scheme.symmetric,
            0,
        )

    def _placed(self, matrix: QuantTensor | Panels) -> Panels:
        """Leave panels where their file is mapped, unless another writer put them where loads straddle lines."""
        if isinstance(matrix, QuantTensor):
            rows, columns = matrix.codes.shape
            count, _, stride = panel_shape(matrix.scheme, rows, columns)
            return Panels(matrix.scheme, rows, columns, pack(matrix, self._arena.take(count * stride)))
        if matrix.bytes.ctypes.data % ALIGNMENT == 0:
            return matrix
        copied = self._arena.take(matrix.bytes.size)
        copied[:] = matrix.bytes.ravel()
        return replace(matrix, bytes=copied)

    def _vector(self, values: NDArray[np.float32]) -> int:
        """Keep a zero-padded fp32 copy alive; return its address."""
        padded = np.zeros(-(-values.size // 32) * 32, np.float32)
        padded[: values.size] = values.ravel()
        self._kept.append(padded)
        return padded.ctypes.data


class _Arena:
    """One run of memory for all matrices, untouched pages free, so that huge pages can back it."""

    def __init__(self, most: int) -> None:
        self._bytes, self._used = _zeroed(most), 0

    def take(self, count: int) -> NDArray[np.uint8]:
        part = self._bytes[self._used : self._used + count]
        self._used += count
        return part


def _zeroed(count: int) -> NDArray[np.uint8]:
    """Map zeroed memory, in huge pages where the system has them: a third more read bandwidth on cold weights."""
    pages = mmap.mmap(-1, count + _HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(pages, np.uint8)
    start = -whole.ctypes.data % _HUGE
    return whole[start : start + count]


def rope_tables(
    spec: ModelSpec, factors: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and sines [context, head_dim / 2] of every position's rotation."""
    inverse = spec.rope_theta ** -(np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim))
    if factors is not None:
        inverse = inverse / factors
    angles = np.arange(spec.context_tokens, dtype=np.float32)[:, None] * inverse.astype(np.float32)
    return np.cos(angles) * np.float32(spec.rope_scale), np.sin(angles) * np.float32(spec.rope_scale)


def _most_bytes(spec: ModelSpec) -> int:
    """Bound the packed bytes: 8 bits with groups of 32, both dimensions rounded up."""

    def matrix(rows: int, columns: int) -> int:
        return (rows + cpu.LANES) * (columns + 128) * 9 // 8 + 64 * (rows // cpu.LANES + 1)

    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = matrix(q, spec.hidden) + 2 * matrix(kv, spec.hidden) + matrix(spec.hidden, q)
    layer += 2 * matrix(spec.ffn, spec.hidden) + matrix(spec.hidden, spec.ffn)
    return spec.layers * layer + 2 * matrix(spec.vocabulary, spec.hidden)


def _check_shape(spec: ModelSpec, kv_blocks: int, block_tokens: int) -> None:
    """Refuse what the library cannot run, in words."""
    rules: dict[str, Callable[[], bool]] = {
        "every size is at least 1": lambda: min(spec.layers, spec.hidden, spec.ffn, spec.heads, spec.kv_heads) > 0,
        "heads are a multiple of kv_heads, at most 48 times as many": lambda: (
            spec.heads % spec.kv_heads == 0 and spec.heads // spec.kv_heads <= 48
        ),
        "head_dim is even and at most 1024": lambda: spec.head_dim % 2 == 0 and 2 <= spec.head_dim <= 1024,
        "block_tokens is a multiple of 16": lambda: block_tokens >= 16 and block_tokens % 16 == 0,
        "there is at least one KV block": lambda: kv_blocks > 0,
        "vocabulary and context are positive": lambda: spec.vocabulary > 0 and spec.context_tokens > 0,
    }
    for rule, holds in rules.items():
        if not holds():
            raise cpu.NativeError(f"the native engine needs that {rule}; got {spec}, {kv_blocks} x {block_tokens}")
