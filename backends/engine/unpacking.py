"""Panels of `packing.py` back to codes, scales and minimums. Refuses to know models and files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backends.engine.packing import Bytes, panel_shape
from backends.engine.quant import Codes, Halves, QuantError, QuantTensor, Scheme

_LANES, _CHUNK, _QUADS = 16, 32, 8


def unpack(panels: Bytes, scheme: Scheme, rows: int, columns: int) -> QuantTensor:
    """Return the matrix [rows, columns] whose panels these are, in any shape of array."""
    count, header, stride = panel_shape(scheme, rows, columns)
    if panels.size != count * stride:
        raise QuantError(f"{scheme} of {rows}x{columns} lies in {count * stride} bytes of panels, not {panels.size}")
    whole = panels.reshape(count, stride)
    chunks = np.ascontiguousarray(whole[:, header:]).reshape(count, -1, scheme.bits, 64)
    scales, minimums = _headers(whole[:, :header], scheme, rows, columns)
    return QuantTensor(scheme, _codes(_quads(chunks, scheme.bits), rows, columns), scales, minimums)


def _headers(header: Bytes, scheme: Scheme, rows: int, columns: int) -> tuple[Halves, Halves | None]:
    groups, tables = scheme.groups(columns), 1 if scheme.symmetric else 2
    used = np.ascontiguousarray(header[:, : tables * groups * _LANES * 2]).view(np.float16)
    lanes = used.reshape(len(header), tables, groups, _LANES).transpose(1, 0, 3, 2)
    found = [np.ascontiguousarray(table.reshape(-1, groups)[:rows]) for table in lanes]
    return found[0], None if scheme.symmetric else found[1]


def _quads(chunks: Bytes, bits: int) -> Bytes:
    """[panels, chunks, bits, 64] -> codes by quad [panels, chunks, 8, 64]."""
    if bits == 8:
        return chunks
    quads = np.empty((*chunks.shape[:2], _QUADS, 64), np.uint8)
    quads[:, :, 0::2], quads[:, :, 1::2] = chunks[:, :, :4] & 15, chunks[:, :, :4] >> 4
    if bits > 4:
        quads |= _upper_bits(chunks[:, :, 4:], bits - 4) << 4
    return quads


def _upper_bits(planes: NDArray[np.uint8], bits: int) -> Bytes:
    """Bits beyond the fourth: quad q has bits `bits * (q % per)` and up of plane `q // per`."""
    per = _QUADS // bits
    shifts = (bits * np.arange(per, dtype=np.uint8))[:, None]
    spread = (planes[:, :, :, None] >> shifts) & ((1 << bits) - 1)
    return spread[:, :, :bits].reshape(*planes.shape[:2], _QUADS, 64).astype(np.uint8)


def _codes(quads: Bytes, rows: int, columns: int) -> Codes:
    """Byte 4 * row + column of a quad back to [rows, columns]."""
    count, chunks = quads.shape[:2]
    lanes = quads.reshape(count, chunks * _QUADS, _LANES, 4).swapaxes(1, 2)
    return np.ascontiguousarray(lanes.reshape(count * _LANES, chunks * _CHUNK)[:rows, :columns])
