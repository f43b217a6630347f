"""Lays a quantised matrix out as the CPU kernels read it (the equation is the text of kernels/cpu/panel.h).

Refuses to know models and files: codes, scales and minimums in, one array of bytes out, and back for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.engine.quant import Halves, QuantError, QuantTensor, Scheme

Bytes = NDArray[np.uint8]
ALIGNMENT = 64  # of every matrix in memory and in its file: the width of the kernels' loads
_LANES, _CHUNK, _QUADS = 16, 32, 8


def panel_shape(scheme: Scheme, rows: int, columns: int) -> tuple[int, int, int]:
    """Return (panels, bytes of a panel's header, bytes of a panel)."""
    chunks = -(-columns // _CHUNK)
    scales = -(-chunks * _CHUNK // scheme.group) * _LANES * 2 * (1 if scheme.symmetric else 2)
    header = -(-scales // 64) * 64
    return -(-rows // _LANES), header, header + chunks * scheme.bits * 64


@dataclass(frozen=True, slots=True)
class Panels:
    """A matrix [rows, columns] laid out already; `bytes` may be a file's, mapped. QuantError when they are too few."""

    scheme: Scheme
    rows: int
    columns: int
    bytes: Bytes

    def __post_init__(self) -> None:
        count, _, stride = panel_shape(self.scheme, self.rows, self.columns)
        if self.bytes.size != count * stride:
            what = f"{self.scheme} of {self.rows}x{self.columns}"
            raise QuantError(f"{what} lies in {count * stride} bytes of panels, not {self.bytes.size}")

    @property
    def headers(self) -> Halves:
        """Scales, then minimums where there are any, of each panel, where they lie."""
        count, _, stride = panel_shape(self.scheme, self.rows, self.columns)
        used = self.scheme.groups(self.columns) * _LANES * 2 * (1 if self.scheme.symmetric else 2)
        return self.bytes.reshape(count, stride)[:, :used].view(np.float16)


def pack(tensor: QuantTensor, out: Bytes | None = None) -> Bytes:
    """Return the panels [count, stride] of `tensor`, written into `out` when it is given."""
    rows, columns = tensor.codes.shape
    count, header, stride = panel_shape(tensor.scheme, rows, columns)
    panels = np.zeros((count, stride), np.uint8) if out is None else out.reshape(count, stride)
    _pack_scales(tensor, panels[:, :header])
    quads = _quads(tensor.codes, count)
    chunks = panels[:, header:].reshape(count, quads.shape[1], tensor.scheme.bits, 64)
    _PLANES[tensor.scheme.bits](quads, chunks)
    return panels


def _pack_scales(tensor: QuantTensor, header: Bytes) -> None:
    tables = [tensor.scales] if tensor.minimums is None else [tensor.scales, tensor.minimums]
    halves = [_lanes_last(np.asarray(table, np.float16), header.shape[0]) for table in tables]
    packed = np.concatenate(halves, axis=1).reshape(header.shape[0], -1).view(np.uint8)
    header[:, : packed.shape[1]] = packed


def _lanes_last(table: NDArray[np.float16], count: int) -> NDArray[np.float16]:
    """[rows, groups] -> [panels, groups, 16], zero where there is no row."""
    whole = np.zeros((count * _LANES, table.shape[1]), np.float16)
    whole[: table.shape[0]] = table
    return whole.reshape(count, _LANES, -1).swapaxes(1, 2)


def _quads(codes: Bytes, count: int) -> Bytes:
    """[rows, columns] -> [panels, chunks, 8 quads, 64], byte 4 * row + column of a quad."""
    rows, columns = codes.shape
    width = -(-columns // _CHUNK) * _CHUNK
    if (count * _LANES, width) != codes.shape:
        codes = np.pad(codes, ((0, count * _LANES - rows), (0, width - columns)))
    words = np.ascontiguousarray(codes).view(np.uint32).reshape(count, _LANES, width // 4)
    return np.ascontiguousarray(words.swapaxes(1, 2)).view(np.uint8).reshape(count, -1, _QUADS, 64)


def _four(quads: Bytes, chunks: Bytes) -> None:
    np.left_shift(quads[:, :, 1::2], 4, out=chunks[:, :, :4])
    chunks[:, :, :4] |= quads[:, :, 0::2] & 15


def _five(quads: Bytes, chunks: Bytes) -> None:
    _four(quads, chunks)
    fifth = chunks[:, :, 4]
    for quad in range(_QUADS):
        fifth |= (quads[:, :, quad] >> 4) << quad


def _six(quads: Bytes, chunks: Bytes) -> None:
    _four(quads, chunks)
    for quad in range(_QUADS):
        chunks[:, :, 4 + quad // 4] |= (quads[:, :, quad] >> 4) << (2 * (quad % 4))


def _eight(quads: Bytes, chunks: Bytes) -> None:
    chunks[:] = quads


_PLANES: dict[int, Callable[[Bytes, Bytes], None]] = {4: _four, 5: _five, 6: _six, 8: _eight}
