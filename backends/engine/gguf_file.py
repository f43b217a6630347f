"""Read a GGUF file's metadata and tensor table, mapped and never trusted. Refuses to know models and tokenizers.

Every count and offset is compared with the file's size before it is followed, so that a hostile file costs at most a
small multiple of its own bytes. The `gguf` package is used for its block codecs alone: its reader trusts what it reads
and needs 1.6 s for the embedded model's vocabulary where this one needs 0.1 s.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.engine.files import mapped
from backends.engine.problems import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
# ggml type number: (name, values a block, bytes a block)
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}  # fmt: skip

Value = str | int | float | bool | list[str] | NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies; `shape` is [out, in], the reverse of the order in the file."""

    shape: tuple[int, ...]
    type: str
    start: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An open file: metadata by key, tensors by their own names, and the bytes they lie in."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]
    bytes: NDArray[np.uint8]

    def rows(self, name: str) -> NDArray[np.uint8]:
        """Return the tensor's stored bytes, one row of blocks an output row; a view of the mapped file."""
        tensor = self.tensors[name]
        count = math.prod(tensor.shape[:-1])
        return self.bytes[tensor.start : tensor.start + count * tensor.row_bytes].reshape(count, tensor.row_bytes)


@dataclass(frozen=True, slots=True)
class _Area:
    """Where tensors may lie."""

    start: int
    end: int
    alignment: int


class _Cursor:
    """Reads forward through the header; anything that would leave the file is a CheckpointError."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.at = path, view, 0

    def take(self, count: int, what: str) -> int:
        start = self.at
        if count > len(self.view) - start:
            raise CheckpointError(
                f"{self.path}: {what} at byte {start} needs {count} bytes but the file ends at byte {len(self.view)}; "
                "it is truncated or damaged: download it again"
            )
        self.at = start + count
        return start

    def u32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self.view, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self.view, self.take(8, what))[0])

    def string(self, what: str) -> str:
        size = self.u64(what)
        start = self.take(size, what)
        try:
            return self.view[start : self.at].decode()
        except UnicodeDecodeError as exc:
            raise CheckpointError(f"{self.path}: {what} at byte {start} is not UTF-8 text") from exc

    def value(self, kind: int, key: str) -> Value:
        if kind == STRING:
            return self.string(key)
        if kind == ARRAY:
            return self.array(self.u32(key), self.u64(key), key)
        return self.scalars(kind, 1, key)[0].item()  # type: ignore[no-any-return]

    def array(self, kind: int, count: int, key: str) -> list[str] | NDArray[np.generic]:
        if kind != STRING:
            return self.scalars(kind, count, key)
        if count > (len(self.view) - self.at) // 8:
            raise CheckpointError(f'{self.path}: "{key}" claims {count} texts, more than the file has room for')
        return [self.string(key) for _ in range(count)]

    def scalars(self, kind: int, count: int, key: str) -> NDArray[np.generic]:
        if kind not in SCALARS:
            raise CheckpointError(f'{self.path}: "{key}" has value type {kind}, which GGUF v3 does not define')
        dtype = np.dtype(SCALARS[kind])
        start = self.take(count * dtype.itemsize, f'"{key}"')
        return np.frombuffer(self.view[start : self.at], dtype)


def read(path: Path) -> GgufFile:
    """Map the file and read its header; raises CheckpointError for anything that is not a whole GGUF file."""
    view = mapped(path)
    cursor = _Cursor(path, view)
    tensor_count, key_count = _counts(cursor)
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.string("a metadata key")
        metadata[key] = cursor.value(cursor.u32(key), key)
    found = [_tensor_entry(cursor) for _ in range(tensor_count)]
    area = _area(cursor, metadata.get("general.alignment", 32))
    tensors = {name: _placed(path, area, name, entry) for name, entry in found}
    if len(tensors) != tensor_count:
        raise CheckpointError(f"{path}: two tensors have the same name")
    _check_apart(path, tensors)
    return GgufFile(path, metadata, tensors, np.frombuffer(view, np.uint8))


def _counts(cursor: _Cursor) -> tuple[int, int]:
    start = cursor.take(4, "the GGUF header")
    if cursor.view[start : start + 4] != MAGIC:
        raise CheckpointError(f"{cursor.path}: not a GGUF file: it starts with {cursor.view[:4]!r}, not {MAGIC!r}")
    version = cursor.u32("the version")
    if version not in VERSIONS:
        raise CheckpointError(f"{cursor.path}: GGUF version {version}; versions 2 and 3 are read")
    tensors, keys = cursor.u64("the tensor count"), cursor.u64("the key count")
    if tensors * 24 + keys * 13 > len(cursor.view):
        raise CheckpointError(f"{cursor.path}: claims {tensors} tensors and {keys} keys, more than it has room for")
    return tensors, keys


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[list[int], int, int]]:
    name = cursor.string("a tensor name")
    dimensions = cursor.u32(name)
    if not 1 <= dimensions <= 4:
        raise CheckpointError(f"{cursor.path}: tensor {name!r} has {dimensions} dimensions; 1 to 4 are allowed")
    sizes = [cursor.u64(name) for _ in range(dimensions)]
    return name, (sizes, cursor.u32(name), cursor.u64(name))


def _area(cursor: _Cursor, alignment: Value) -> _Area:
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{cursor.path}: general.alignment is {alignment!r}; it must be a power of two")
    return _Area(-(-cursor.at // alignment) * alignment, len(cursor.view), alignment)


def _placed(path: Path, area: _Area, name: str, entry: tuple[list[int], int, int]) -> GgufTensor:
    sizes, number, offset = entry
    if number not in TYPES:
        raise CheckpointError(f"{path}: tensor {name!r} has ggml type {number}, which is not supported")
    kind, block_values, block_bytes = TYPES[number]
    if 0 in sizes or sizes[0] % block_values:
        raise CheckpointError(f"{path}: tensor {name!r} has shape {sizes}; rows of {kind} come in {block_values}s")
    row_bytes = sizes[0] // block_values * block_bytes
    start = area.start + offset
    end = start + math.prod(sizes[1:]) * row_bytes
    if offset % area.alignment:
        raise CheckpointError(f"{path}: tensor {name!r} has offset {offset}, no multiple of {area.alignment}")
    if end > area.end:
        raise CheckpointError(
            f"{path}: tensor {name!r} ends at byte {end} but the file has {area.end}; "
            "it is truncated or damaged: download it again"
        )
    return GgufTensor(tuple(reversed(sizes)), kind, start, row_bytes)


def _check_apart(path: Path, tensors: Mapping[str, GgufTensor]) -> None:
    """Refuse tensors that share bytes: one of them is not what its name says."""
    end, last = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < end:
            raise CheckpointError(f"{path}: tensors {last!r} and {name!r} overlap at byte {tensor.start}")
        end, last = tensor.start + math.prod(tensor.shape[:-1]) * tensor.row_bytes, name
