"""Map a safetensors file. Refuses to know what its tensors mean.

The `safetensors` package's numpy side cannot read bf16 and copies what it reads; the format is one JSON header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from backends.engine.files import mapped
from backends.engine.problems import CheckpointError

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
HEADER_BYTES, DIMENSIONS = 100_000_000, 8  # the format's own bound, and one beyond any tensor's
BYTES, WORDS = {"U8": 1}, {"I32": 4}  # packed weights, which only those who ask for them can read


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor's bytes in the mapped file, with their type and shape."""

    shape: tuple[int, ...]
    type: str
    bytes: NDArray[np.uint8]

    @property
    def values(self) -> NDArray[np.generic]:
        """The values as they are stored, still mapped; a bf16 as its sixteen bits."""
        dtype = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I32": "<i4", "U8": "u1", "BF16": "<u2"}[self.type]
        return self.bytes.view(dtype).reshape(self.shape)

    def as_float32(self) -> NDArray[np.float32]:
        """Return the values; a bf16 is the upper half of a float32."""
        if self.type == "BF16":
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return self.values.astype(np.float32)


def read(path: Path, widths: Mapping[str, int] = WIDTHS) -> dict[str, StoredTensor]:
    """Map a file of tensors of the types of `widths`; raises CheckpointError for anything that is not a whole one."""
    view = mapped(path)
    size = int.from_bytes(view[:8], "little")
    if len(view) < 8 or size > len(view) - 8:
        raise CheckpointError(f"{path}: not a whole safetensors file: its header claims {size} of {len(view)} bytes")
    if size > HEADER_BYTES:
        raise CheckpointError(f"{path}: its header has {size} bytes; the format allows {HEADER_BYTES}")
    table = _table(path, view[8 : 8 + size])
    table.pop("__metadata__", None)
    area = np.frombuffer(view, np.uint8, offset=8 + size)
    found = {name: _stored(path, name, entry, area, widths) for name, entry in table.items()}
    _check_apart(path, table)
    return found


def _table(path: Path, header: bytes) -> dict[str, Any]:
    try:
        table = orjson.loads(header)
    except orjson.JSONDecodeError as exc:
        raise CheckpointError(f"{path}: not a safetensors file: its header is not JSON: {exc}") from exc
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: not a safetensors file: its header is not an object")
    return table


def _stored(path: Path, name: str, entry: Any, area: NDArray[np.uint8], widths: Mapping[str, int]) -> StoredTensor:
    match entry:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(start), int(end)]} if len(
            shape
        ) <= DIMENSIONS and all(isinstance(size, int) and size > 0 for size in shape):
            pass
        case _:
            raise CheckpointError(f"{path}: the table's entry for {name!r} is malformed")
    if kind not in widths:
        raise CheckpointError(f"{path}: tensor {name!r} is {kind}; {', '.join(widths)} are read")
    if not 0 <= start <= end <= len(area) or end - start != math.prod(shape) * widths[kind]:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {shape} lies at bytes {start} to {end} of {len(area)}; "
            "the file is truncated or damaged: download it again"
        )
    return StoredTensor(tuple(shape), kind, area[start:end])


def _check_apart(path: Path, table: Mapping[str, Any]) -> None:
    """Refuse tensors that share bytes: one of them is not what its name says."""
    end, last = 0, ""
    for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["data_offsets"][0] < end:
            raise CheckpointError(f"{path}: tensors {last!r} and {name!r} overlap at byte {entry['data_offsets'][0]}")
        end, last = entry["data_offsets"][1], name
