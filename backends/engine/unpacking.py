"""Panels of `packing.py` back to codes, scales and minimums. Refuses to know models and files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backends.engine.packing import Bytes, Panels, panel_shape
from backends.engine.quant import Codes, Halves, QuantTensor

_LANES, _CHUNK, _QUADS = 16, 32, 8


def unpack(panels: Panels) -> QuantTensor:
    """Return the matrix whose panels these are."""
    scheme, rows, columns = panels.scheme, panels.rows, panels.columns
    count, header, stride = panel_shape(scheme, rows, columns)
    chunks = np.ascontiguousarray(panels.bytes.reshape(count, stride)[:, header:]).reshape(count, -1, scheme.bits, 64)
    scales, minimums = _tables(panels)
    return QuantTensor(scheme, _codes(_quads(chunks, scheme.bits), rows, columns), scales, minimums)


def _tables(panels: Panels) -> tuple[Halves, Halves | None]:
    groups, tables = panels.scheme.groups(panels.columns), 1 if panels.scheme.symmetric else 2
    headers = panels.headers
    lanes = headers.reshape(len(headers), tables, groups, _LANES).transpose(1, 0, 3, 2)
    found = [np.ascontiguousarray(table.reshape(-1, groups)[: panels.rows]) for table in lanes]
    return found[0], None if panels.scheme.symmetric else found[1]


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
