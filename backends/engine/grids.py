"""Matrices that other tools quantised (GGUF, GPTQ, AWQ), read into our format without rounding again where they fit.

Refuses to know whole files: bytes or arrays of one matrix in, one `QuantTensor` out.

Q4_0, Q5_0, Q8_0     -> 4, 5, 8 bits, groups of 32, symmetric: exact
Q4_1, Q5_1           -> 4, 5 bits, groups of 32, asymmetric: exact
Q4_K, Q5_K           -> 4, 5 bits, groups of 32, asymmetric: the codes are kept; a scale there is the product of a 6-bit
                        and an fp16 number, here that product rounded to fp16, so each header is off by up to 2^-11
Q6_K                 -> 8 bits, groups of 32, symmetric: its groups of 16 do not fit, so it is rounded again, at an RMS
                        error below 1/128 of a group's largest weight
GPTQ, AWQ symmetric  -> their bits (2 and 3 as 4) and group (larger ones as several of 128), symmetric: exact
GPTQ, AWQ with zeros -> the same, asymmetric: scale * zero is rounded to fp16, 2^-11 of the minimum
GPTQ with act-order  -> 8 bits, groups of 32, symmetric: its groups are scattered over K, so it is rounded again
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from backends.engine.quant import Bits, Codes, Floats, Group, Halves, QuantError, QuantTensor, Scheme, quantize

Bytes = NDArray[np.uint8]
Words = NDArray[np.int32]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column, within its eight, of each nibble of an AWQ word, lowest nibble first."""


def from_gguf(raw: Bytes, kind: str, shape: tuple[int, int]) -> QuantTensor:
    """Read the blocks of one GGUF matrix of `shape` [N, K] and block format `kind`, such as `Q4_1`."""
    if kind not in GRIDS:
        raise QuantError(f"GGUF blocks of kind {kind} are not a grid of ours: dequantise and quantise them again")
    block, size, read = GRIDS[kind]
    rows, columns = shape
    if columns % block or raw.size != rows * columns // block * size:
        raise QuantError(f"{kind} of {rows}x{columns} needs blocks of {block} weights in {size} bytes, not {raw.size}")
    tensor = read(raw.reshape(rows, columns // block, size))
    if not (np.isfinite(tensor.scales).all() and (tensor.minimums is None or np.isfinite(tensor.minimums).all())):
        raise QuantError(f"{kind} of {rows}x{columns} holds a scale that is NaN or infinite")
    return tensor


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """What a `quantization_config` says about int32-packed matrices: zeros are stored minus `zero_shift`.

    `group` is how many columns share a scale; -1 is all of them.
    """

    bits: int
    group: int
    zero_shift: int = 1


def from_gptq(parts: Mapping[str, NDArray[np.generic]], layout: PackedLayout) -> QuantTensor:
    """Read `qweight` [K*bits/32, N], `qzeros`, `scales` [groups, N] and, if there, `g_idx` [K] of one linear layer."""
    codes = _bit_stream(parts["qweight"].astype(np.int32).T, layout.bits)
    order = parts.get("g_idx")
    codes = codes if order is None else codes[:, : len(order)]
    rows, columns = codes.shape
    zeros = _bit_stream(parts["qzeros"].astype(np.int32), layout.bits).T[:rows] + np.int32(layout.zero_shift)
    scales = parts["scales"].T.astype(np.float32)
    if order is not None and not np.array_equal(
        order, np.arange(columns) // (columns if layout.group == -1 else layout.group)
    ):
        return _scattered(codes, zeros, scales, order.astype(np.int64))
    return _with_zeros(codes, zeros, scales, layout)


def from_awq(parts: Mapping[str, NDArray[np.generic]], layout: PackedLayout) -> QuantTensor:
    """Read `qweight` [K, N/8], `qzeros` [groups, N/8] and `scales` [groups, N] of one 4-bit linear layer."""
    if layout.bits != 4:
        raise QuantError(f"AWQ packs 4 bits, not {layout.bits}")
    codes = _awq_columns(parts["qweight"].astype(np.int32)).T
    zeros = _awq_columns(parts["qzeros"].astype(np.int32)).T.astype(np.int32)
    return _with_zeros(codes, zeros, parts["scales"].T.astype(np.float32), layout)


def _with_zeros(codes: Codes, zeros: Words, scales: Floats, layout: PackedLayout) -> QuantTensor:
    """Turn w = scale * (code - zero) into our form: symmetric where every zero is the middle, else a minimum."""
    if scales.shape != zeros.shape:
        raise QuantError(f"scales {scales.shape} and zeros {zeros.shape} do not belong together")
    bits: Bits = 8 if layout.bits == 8 else 4
    group, times = _groups_of_ours(layout.group, codes.shape[1])
    symmetric = bool((zeros == 1 << (layout.bits - 1)).all())
    scheme = Scheme(bits, group, symmetric)
    if symmetric:
        codes = codes + np.uint8(scheme.middle - (1 << (layout.bits - 1)))

    def ours(header: Floats) -> Halves:
        return np.repeat(header.astype(np.float16), times, axis=1)[:, : scheme.groups(codes.shape[1])]

    return QuantTensor(scheme, np.ascontiguousarray(codes), ours(scales), None if symmetric else ours(-scales * zeros))


def _groups_of_ours(stored: int, columns: int) -> tuple[Group, int]:
    """Give the group that holds theirs exactly, and how many of ours one of theirs is."""
    if stored in (32, 64, 128):
        return cast("Group", stored), 1
    if stored == -1 or (stored > 0 and stored % 128 == 0):
        return 128, (columns + 127 if stored == -1 else stored) // 128
    raise QuantError(f"a group of {stored} columns is not read; -1, 32, 64 and multiples of 128 are")


def _scattered(codes: Codes, zeros: Words, scales: Floats, order: NDArray[np.int64]) -> QuantTensor:
    """Round again what no groups of neighbours hold; `order` [K] names each column's group."""
    if order.min() < 0 or order.max() >= scales.shape[1]:
        raise QuantError(f"g_idx names group {order.max()} of {scales.shape[1]}")
    return quantize(scales[:, order] * (codes - zeros[:, order]).astype(np.float32), Scheme(8, 32, symmetric=True))


def _bit_stream(words: Words, bits: int) -> Codes:
    """Unpack rows of int32 words, lowest bit first, into codes of `bits`; 3 bits cross words, as GPTQ has them."""
    rows = words.shape[0]
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8).reshape(rows, -1), axis=1, bitorder="little")
    planes = stream[:, : stream.shape[1] // bits * bits].reshape(rows, -1, bits)
    return np.packbits(planes, axis=2, bitorder="little")[..., 0]


def _awq_columns(words: Words) -> Codes:
    nibbles = _bit_stream(words, 4).reshape(words.shape[0], -1, 8)
    return nibbles[..., np.argsort(AWQ_ORDER)].reshape(words.shape[0], -1)


def _halves(blocks: Bytes, at: int) -> Halves:
    """Read the fp16 at byte `at` of every block: [N, blocks]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0]


def _nibbles(packed: Bytes) -> Codes:
    """Split bytes into low nibbles, then high ones: 16 bytes hold weights 0..15 low and 16..31 high."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _joined(codes: NDArray[np.integer]) -> Codes:
    return np.ascontiguousarray(codes.reshape(codes.shape[0], -1), dtype=np.uint8)


def _q4(symmetric: bool) -> Callable[[Bytes], QuantTensor]:  # noqa: FBT001  used only in the table below
    def read(blocks: Bytes) -> QuantTensor:
        headers = 2 if symmetric else 4
        minimums = None if symmetric else _halves(blocks, 2)
        codes = _joined(_nibbles(blocks[..., headers:]))
        return QuantTensor(Scheme(4, 32, symmetric=symmetric), codes, _halves(blocks, 0), minimums)

    return read


def _q5(symmetric: bool) -> Callable[[Bytes], QuantTensor]:  # noqa: FBT001  used only in the table below
    def read(blocks: Bytes) -> QuantTensor:
        headers = 2 if symmetric else 4
        fifth = np.unpackbits(blocks[..., headers : headers + 4], axis=-1, bitorder="little")
        codes = _joined(_nibbles(blocks[..., headers + 4 :]) | fifth << 4)
        minimums = None if symmetric else _halves(blocks, 2)
        return QuantTensor(Scheme(5, 32, symmetric=symmetric), codes, _halves(blocks, 0), minimums)

    return read


def _q8_0(blocks: Bytes) -> QuantTensor:
    codes = _joined(blocks[..., 2:] ^ 0x80)
    return QuantTensor(Scheme(8, 32, symmetric=True), codes, _halves(blocks, 0), None)


def _k_headers(blocks: Bytes) -> tuple[Halves, Halves]:
    """Multiply out the two-level scales and minimums of a K-quant: 8 of each, 6 bits, in 12 bytes."""
    packed = blocks[..., 4:16]
    low, mid, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    steps = np.concatenate((low & 63, (high & 15) | (low >> 6) << 4), axis=-1).astype(np.float32)
    bases = np.concatenate((mid & 63, (high >> 4) | (mid >> 6) << 4), axis=-1).astype(np.float32)
    scales = _halves(blocks, 0).astype(np.float32)[..., None] * steps
    minimums = -_halves(blocks, 2).astype(np.float32)[..., None] * bases
    rows = blocks.shape[0]
    return scales.reshape(rows, -1).astype(np.float16), minimums.reshape(rows, -1).astype(np.float16)


def _k_nibbles(packed: Bytes) -> Codes:
    """Split 128 bytes into 8 runs of 32 weights: each 32 bytes hold one run low, the next run high."""
    return _nibbles(packed.reshape(*packed.shape[:-1], 4, 32)).reshape(*packed.shape[:-1], 8, 32)


def _q4_k(blocks: Bytes) -> QuantTensor:
    return QuantTensor(Scheme(4, 32), _joined(_k_nibbles(blocks[..., 16:])), *_k_headers(blocks))


def _q5_k(blocks: Bytes) -> QuantTensor:
    fifth = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return QuantTensor(Scheme(5, 32), _joined(_k_nibbles(blocks[..., 48:]) | fifth << 4), *_k_headers(blocks))


def _q6_k(blocks: Bytes) -> QuantTensor:
    import gguf  # noqa: PLC0415 - no other grid needs it, and it takes a worker's start 20 ms and 5 MB

    rows = blocks.shape[0]
    weight: Floats = gguf.quants.dequantize(blocks.reshape(rows, -1), gguf.GGMLQuantizationType.Q6_K)
    return quantize(weight.reshape(rows, -1), Scheme(8, 32, symmetric=True))


GRIDS: dict[str, tuple[int, int, Callable[[Bytes], QuantTensor]]] = {
    "Q4_0": (32, 18, _q4(symmetric=True)),
    "Q4_1": (32, 20, _q4(symmetric=False)),
    "Q5_0": (32, 22, _q5(symmetric=True)),
    "Q5_1": (32, 24, _q5(symmetric=False)),
    "Q8_0": (32, 34, _q8_0),
    "Q4_K": (256, 144, _q4_k),
    "Q5_K": (256, 176, _q5_k),
    "Q6_K": (256, 210, _q6_k),
}
