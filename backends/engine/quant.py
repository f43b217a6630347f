"""The logical quantised format that CPU and GPU share, and rounding to it.

Refuses to know files, models, torch and where a kernel wants its bits (`packing.py`).

A matrix [rows N, columns K] is cut along K into groups of 32, 64 or 128 columns. When K is no multiple of the group
(576 is 4.5 groups of 128) the last group is short: there are ceil(K / group) groups and the last one owns what is
left. Every group has one fp16 scale and, when asymmetric, one fp16 minimum:

    asymmetric   w = scale * code + minimum                 code in 0 .. 2^bits - 1
    symmetric    w = scale * (code - 2^(bits - 1))          the same codes; the scale may be negative

Scales are rounded to fp16 before codes are chosen, so that dequantising loses nothing that rounding did not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Bits = Literal[3, 4, 5, 6, 8]
Group = Literal[32, 64, 128]
Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Codes = NDArray[np.uint8]

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.74)
"""Ranges tried by the clip search, as shares of the group's own range."""

ROWS_AT_ONCE = 1 << 20
"""Weights rounded at a time: a few float copies of them stay inside the last-level cache."""


class QuantError(ValueError):
    """A matrix that this format cannot hold, or a file that breaks the format's rules."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one matrix is rounded. Three bits exist for sensitivity analysis only: no kernel runs them."""

    bits: Bits
    group: Group = 128
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (3, 4, 5, 6, 8):
            raise QuantError(f"{self.bits} bits a weight do not exist here; choose 4, 5, 6 or 8")
        if self.group not in (32, 64, 128):
            raise QuantError(f"a group of {self.group} columns does not exist here; choose 32, 64 or 128")

    @property
    def top(self) -> int:
        """The largest code."""
        return int((1 << self.bits) - 1)

    @property
    def middle(self) -> int:
        """The code that means zero in a symmetric group."""
        return int(1 << (self.bits - 1))

    def groups(self, columns: int) -> int:
        """Count the groups of a row; the last may be short."""
        return -(-columns // self.group)

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of codes, scales and minimums, without a layout's padding."""
        headers = 2 if self.symmetric else 4
        return rows * (-(-columns * self.bits // 8) + headers * self.groups(columns))

    def __str__(self) -> str:
        """Short and unique: `4g128a` is 4 bits, groups of 128, asymmetric."""
        return f"{self.bits}g{self.group}{'s' if self.symmetric else 'a'}"


@dataclass(frozen=True, slots=True)
class QuantTensor:
    """One quantised matrix: codes u8 [N, K], one code a byte; scales and minimums fp16 [N, groups]."""

    scheme: Scheme
    codes: Codes
    scales: Halves
    minimums: Halves | None

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape
        headers = (rows, self.scheme.groups(columns))
        if self.scales.shape != headers or (self.minimums is not None and self.minimums.shape != headers):
            raise QuantError(f"{self.scheme} of {rows}x{columns} needs scales {headers}, not {self.scales.shape}")
        if (self.minimums is None) != self.scheme.symmetric:
            raise QuantError(f"{self.scheme}: minimums belong to asymmetric matrices, and only to them")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix as stored, not of this unpacked form."""
        return self.scheme.nbytes(*self.shape)


def quantize(weight: Floats, scheme: Scheme, importance: Floats | None = None) -> QuantTensor:
    """Round a matrix, searching each group's range for the least error weighted by `importance`.

    `importance` [K] is the second moment of each input column on calibration text; None weighs all columns alike.
    """
    rows, columns = weight.shape
    if not np.isfinite(weight).all():
        raise QuantError("the matrix holds NaN or infinity, which no scale can express")
    weighting = np.ones(columns, np.float32) if importance is None else importance.astype(np.float32)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, scheme.groups(columns)), np.float16)
    minimums = np.zeros_like(scales)

    def fill(part: slice) -> None:
        scales[part], minimums[part] = fit(weight[part].astype(np.float32), scheme, weighting)
        codes[part] = encode(weight[part], scheme, scales[part], minimums[part])

    with ThreadPoolExecutor() as threads:
        list(threads.map(fill, _row_parts(rows, columns)))
    return QuantTensor(scheme, codes, scales, None if scheme.symmetric else minimums)


def dequantize(tensor: QuantTensor) -> Floats:
    """Return the matrix that the codes stand for."""
    columns = tensor.shape[1]
    scales, minimums = (spread(part, tensor.scheme, columns) for part in headers(tensor))
    return scales * tensor.codes + minimums


def headers(tensor: QuantTensor) -> tuple[Floats, Floats]:
    """Scale and minimum of each group in fp32; a symmetric group's minimum is that of its code 0."""
    scales = tensor.scales.astype(np.float32)
    if tensor.minimums is None:
        return scales, -tensor.scheme.middle * scales
    return scales, tensor.minimums.astype(np.float32)


def spread(header: Floats, scheme: Scheme, columns: int) -> Floats:
    """Repeat one value a group to one value a column."""
    return np.repeat(header, scheme.group, axis=1)[:, :columns]


def encode(weight: Floats, scheme: Scheme, scales: Halves, minimums: Halves) -> Codes:
    """Nearest code of each weight under given headers; where the scale is zero, the code of the minimum or of zero."""
    columns = weight.shape[1]
    scale = spread(scales.astype(np.float32), scheme, columns)
    low = spread(minimums.astype(np.float32), scheme, columns)
    safe = np.where(scale == 0, np.float32(1), scale)
    offset = np.float32(scheme.middle if scheme.symmetric else 0)
    steps = np.where(scale == 0, np.float32(0), (weight - low) / safe)
    return np.clip(np.rint(steps + offset), 0, scheme.top).astype(np.uint8)


def fit(weight: Floats, scheme: Scheme, importance: Floats) -> tuple[Halves, Halves]:
    """Scale and minimum [N, groups] of each group: the best of `SHRINKS`, each refined once by least squares."""
    grouped, weights = _grouped(weight, scheme), _grouped(importance[None], scheme, fill=0.0)
    if not weights.any():
        weights = np.ones_like(weights)
    best = _scored(grouped, weights, scheme, _range(grouped, scheme, 1.0))
    for shrink in SHRINKS:
        guess = _range(grouped, scheme, shrink)
        best = _better(best, _scored(grouped, weights, scheme, guess))
        best = _better(best, _scored(grouped, weights, scheme, _refined(grouped, weights, scheme, guess)))
    return best.scale, best.minimum


@dataclass(frozen=True, slots=True)
class _Headers:
    """Headers of all groups with the weighted error each group has under them, all [N, groups]."""

    error: Floats
    scale: Halves
    minimum: Halves


def _row_parts(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, ROWS_AT_ONCE // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _grouped(matrix: Floats, scheme: Scheme, fill: float | None = None) -> Floats:
    """View as [N, groups, group]; a short last group repeats its last column, or holds `fill`."""
    rows, columns = matrix.shape
    missing = scheme.groups(columns) * scheme.group - columns
    pad = np.repeat(matrix[:, -1:], missing, axis=1) if fill is None else np.full((rows, missing), fill, np.float32)
    return np.concatenate((matrix, pad), axis=1).reshape(rows, -1, scheme.group)


def _range(grouped: Floats, scheme: Scheme, shrink: float) -> tuple[Floats, Floats]:
    """Headers that cover `shrink` of each group's range; symmetric, the largest magnitude gets code 0."""
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    if scheme.symmetric:
        extreme = np.where(-low >= high, low, high)
        return -extreme * np.float32(shrink / scheme.middle), np.zeros_like(low)
    return (high - low) * np.float32(shrink / scheme.top), low + (high - low) * np.float32((1 - shrink) / 2)


def _refined(grouped: Floats, weights: Floats, scheme: Scheme, guess: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Weighted least squares of scale (and minimum) for the codes that `guess` gives."""
    codes = _steps(grouped, scheme, *guess)
    if scheme.symmetric:
        power = (weights * codes * codes).sum(axis=2)
        fitted = (weights * codes * grouped).sum(axis=2) / np.where(power == 0, 1, power)
        return np.where(power == 0, guess[0], fitted), guess[1]
    total = weights.sum(axis=2)
    mean_code = (weights * codes).sum(axis=2) / np.where(total == 0, 1, total)
    mean = (weights * grouped).sum(axis=2) / np.where(total == 0, 1, total)
    centred = codes - mean_code[..., None]
    power = (weights * centred * centred).sum(axis=2)
    fitted = (weights * centred * grouped).sum(axis=2) / np.where(power == 0, 1, power)
    scale = np.where(power == 0, guess[0], fitted)
    return scale, np.where(power == 0, guess[1], mean - scale * mean_code)


def _steps(grouped: Floats, scheme: Scheme, scale: Floats, low: Floats) -> Floats:
    """Codes as floats, centred on zero when symmetric."""
    bottom = -scheme.middle if scheme.symmetric else 0
    safe = np.where(scale == 0, np.float32(1), scale)[..., None]
    return np.clip(np.rint((grouped - low[..., None]) / safe), bottom, bottom + scheme.top)


def _scored(grouped: Floats, weights: Floats, scheme: Scheme, guess: tuple[Floats, Floats]) -> _Headers:
    scale, minimum = _halves(guess[0]), _halves(guess[1])
    wide, base = scale.astype(np.float32), minimum.astype(np.float32)
    missed = _steps(grouped, scheme, wide, base) * wide[..., None] + base[..., None] - grouped
    return _Headers((weights * missed * missed).sum(axis=2), scale, minimum)


def _better(best: _Headers, other: _Headers) -> _Headers:
    take = other.error < best.error
    return _Headers(
        np.where(take, other.error, best.error),
        np.where(take, other.scale, best.scale),
        np.where(take, other.minimum, best.minimum),
    )


def _halves(header: Floats) -> Halves:
    """Round to fp16, refusing what it cannot express."""
    if np.abs(header).max(initial=0.0) > np.finfo(np.float16).max:
        raise QuantError("a group spans more than fp16 scales can express (65504)")
    return header.astype(np.float16)
