"""The quantised format: what rounding promises, and that other tools' grids are read exactly where they fit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.engine.grids import AWQ_ORDER, PackedLayout, from_awq, from_gguf, from_gptq
from backends.engine.quant import QuantError, Scheme, dequantize, encode, quantize

SCHEMES = st.builds(Scheme, st.sampled_from([3, 4, 5, 6, 8]), st.sampled_from([32, 64, 128]), st.booleans())


def _gaussian(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(SCHEMES, st.integers(1, 9), st.integers(1, 300), st.integers(0, 2**31))
def test_every_group_is_rounded_at_least_as_well_as_covering_its_range_would(
    scheme: Scheme, rows: int, columns: int, seed: int
) -> None:
    """Rounding any shape, also one whose last group is short, costs no group more than covering its range."""
    weight = _gaussian(rows, columns, seed)

    tensor = quantize(weight, scheme)

    error = np.square(dequantize(tensor) - weight)
    for start in range(0, columns, scheme.group):
        part = slice(start, start + scheme.group)
        span = np.ptp(weight[:, part], axis=1) if not scheme.symmetric else 2 * np.abs(weight[:, part]).max(axis=1)
        half_step = span / scheme.top * 0.5 + np.abs(weight[:, part]).max(axis=1) * 2**-10
        if scheme.symmetric:
            half_step = half_step + np.abs(weight[:, part]).max(axis=1) / scheme.middle
        assert (error[:, part].mean(axis=1) <= np.square(half_step)).all()


@settings(deadline=None, max_examples=40)
@given(SCHEMES, st.integers(1, 5), st.integers(1, 200), st.integers(0, 2**31))
def test_what_lies_on_the_grid_keeps_its_codes(scheme: Scheme, rows: int, columns: int, seed: int) -> None:
    """Encoding dequantised weights under their own scales gives the same codes again."""
    tensor = quantize(_gaussian(rows, columns, seed), scheme)
    minimums = np.zeros_like(tensor.scales) if tensor.minimums is None else tensor.minimums

    codes = encode(dequantize(tensor), scheme, tensor.scales, minimums)

    assert np.array_equal(codes, tensor.codes)


@pytest.mark.parametrize("symmetric", [True, False])
def test_important_columns_are_rounded_better(symmetric: bool) -> None:  # noqa: FBT001
    """Columns that activations weigh a thousand times get less error than under even weights."""
    weight = _gaussian(64, 256)
    importance = np.ones(256, np.float32)
    importance[::8] = 1000

    error = [
        np.square(dequantize(quantize(weight, Scheme(4, 128, symmetric), which)) - weight)[:, ::8].sum()
        for which in (None, importance)
    ]

    assert error[1] < 0.9 * error[0]


def test_constant_and_zero_groups_are_exact() -> None:
    """A group of equal halves costs no error, however small, and zero stays zero."""
    weight = np.repeat(np.array([[0.0], [0.5], [-2.0], [6e-8]], np.float32), 70, axis=1)

    for symmetric in (True, False):
        assert np.array_equal(dequantize(quantize(weight, Scheme(4, 32, symmetric)))[:3], weight[:3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_weights_no_scale_can_hold_are_refused(bad: float) -> None:
    """NaN, infinity and ranges beyond fp16 are an error, never a silent zero."""
    weight = _gaussian(2, 64)
    weight[1, 5] = bad

    with pytest.raises(QuantError):
        quantize(weight, Scheme(8, 64, symmetric=True))


def test_the_stated_size_counts_scales_and_minimums() -> None:
    """576 columns at 6 bits, groups of 128, asymmetric: 432 bytes of codes and five scales and minimums a row."""
    assert Scheme(6, 128).nbytes(10, 576) == 10 * (432 + 5 * 4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_blocks_of_32_are_read_exactly(kind: str) -> None:
    """The grid of these kinds is ours: every weight is the one gguf's own reader gives."""
    wanted = gguf.GGMLQuantizationType[kind]
    raw = gguf.quants.quantize(_gaussian(8, 96), wanted)

    tensor = from_gguf(raw, kind, (8, 96))

    assert np.array_equal(dequantize(tensor), gguf.quants.dequantize(raw, wanted))


def _k_blocks(kind: str, size: int) -> np.ndarray:
    blocks = np.random.default_rng(1).integers(0, 256, (4, 2, size), dtype=np.uint8)
    scales = np.array([0.0123, 0.0456], np.float16).view(np.uint8)
    if kind == "Q6_K":
        blocks[..., -2:] = scales[:2]
    else:
        blocks[..., :4] = scales
    return blocks.reshape(4, -1)


@pytest.mark.parametrize(("kind", "size"), [("Q4_K", 144), ("Q5_K", 176)])
def test_k_quants_keep_their_codes_and_lose_only_fp16_of_scales(kind: str, size: int) -> None:
    """Q4_K and Q5_K differ from gguf's reader by at most 2^-11 of scale * code and of the minimum."""
    raw = _k_blocks(kind, size)

    tensor = from_gguf(raw.reshape(-1), kind, (4, 512))

    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    minimums = np.repeat(np.abs(tensor.minimums.astype(np.float32)), 32, axis=1)
    bound = (np.repeat(tensor.scales.astype(np.float32), 32, axis=1) * tensor.codes + minimums) * 2**-11
    assert (np.abs(dequantize(tensor) - theirs) <= bound * 1.01 + 1e-7).all()


def test_q6_k_is_rounded_again_with_little_loss() -> None:
    """Groups of 16 do not fit: at 8 bits the second rounding costs, RMS, below 1/128 of the group's largest weight."""
    raw = _k_blocks("Q6_K", 210)

    ours = dequantize(from_gguf(raw.reshape(-1), "Q6_K", (4, 512)))

    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q6_K)
    groups = (ours - theirs).reshape(4, -1, 32)
    largest = np.abs(theirs.reshape(groups.shape)).max(axis=2)
    assert (np.sqrt(np.square(groups).mean(axis=2)) <= largest / 128).all()


@pytest.mark.parametrize(
    ("raw", "kind"), [(np.zeros(10, np.uint8), "Q4_0"), (np.zeros(18, np.uint8), "IQ2_XS"), (None, "Q4_0")]
)
def test_hostile_blocks_are_refused(raw: np.ndarray | None, kind: str) -> None:
    """A wrong length, an unknown kind and a NaN scale are each an error that says so."""
    if raw is None:
        raw = np.full(18, 0xFF, np.uint8)

    with pytest.raises(QuantError, match=r"needs blocks|not a grid|NaN"):
        from_gguf(raw, kind, (1, 32))


def _packed_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes along axis 0 into int32 words, lowest bits first, as GPTQ does."""
    planes = np.unpackbits(codes.T[..., None].astype(np.uint8), axis=2, bitorder="little")[..., :bits]
    stream = np.packbits(planes.reshape(codes.shape[1], -1), axis=1, bitorder="little")
    return np.ascontiguousarray(stream).view(np.int32).T


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_is_read_as_its_definition_says(bits: int, symmetric: bool) -> None:  # noqa: FBT001
    """A weight is scale * (code - zero - 1); symmetric exactly, asymmetric up to fp16 of the minimum."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (256, 32))
    zeros = np.full((2, 32), (1 << (bits - 1)) - 1) if symmetric else rng.integers(0, (1 << bits) - 1, (2, 32))
    scales = rng.random((2, 32)).astype(np.float16)
    parts = {"qweight": _packed_words(codes, bits), "qzeros": _packed_words(zeros.T, bits).T, "scales": scales}

    ours = dequantize(from_gptq(parts, PackedLayout(bits, 128)))

    wide = scales.astype(np.float32).repeat(128, axis=0)
    theirs = wide * (codes - zeros.repeat(128, axis=0) - 1)
    allowed = 0 if symmetric else wide * (zeros.repeat(128, axis=0) + 1) * 2**-11
    assert (np.abs(ours.T - theirs) <= allowed).all()


def test_awq_is_read_as_its_definition_says() -> None:
    """A weight is scale * (code - zero) with AWQ's interleaved columns."""
    rng = np.random.default_rng(0)
    codes, zeros = rng.integers(0, 16, (128, 16)), rng.integers(0, 16, (1, 16))
    scales = rng.random((1, 16)).astype(np.float16)

    def pack(values: np.ndarray) -> np.ndarray:
        shifts = 4 * np.arange(8, dtype=np.uint32)
        words = values.reshape(-1, 2, 8)[..., list(AWQ_ORDER)].astype(np.uint32)
        return (words << shifts).sum(axis=2).astype(np.uint32).view(np.int32)

    parts = {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}

    ours = dequantize(from_awq(parts, PackedLayout(4, 128, zero_shift=0)))

    wide = scales.astype(np.float32)
    assert (np.abs(ours.T - wide * (codes - zeros)) <= wide * zeros * 2**-11).all()
