"""Open files that a stranger may have made: mapped or as JSON, within bounds, never a pipe that hangs.

Refuses to know what is in them. Everything that goes wrong is a CheckpointError that names the file.
"""

from __future__ import annotations

import mmap
import stat
from pathlib import Path
from typing import Any

import orjson

from backends.engine.problems import CheckpointError

JSON_BYTES = 256 << 20  # tokenizer.json of the largest vocabularies is 40 MB; parsing costs a multiple


def mapped(path: Path) -> mmap.mmap:
    """Map a whole file for reading."""
    _check_regular(path)
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as exc:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path}: cannot be read: {exc}") from exc


def read_text(path: Path) -> str:
    """Read a text file."""
    size = _check_regular(path)
    if size > JSON_BYTES:
        raise CheckpointError(f"{path}: {size} bytes are more than the {JSON_BYTES} that are read")
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc}") from exc


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object."""
    try:
        value = orjson.loads(read_text(path))
    except orjson.JSONDecodeError as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc}") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object is needed")
    return value


def _check_regular(path: Path) -> int:
    """Return the size; opening a pipe would wait for ever."""
    try:
        found = path.stat()
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc}") from exc
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path}: cannot be read: it is not a regular file")
    return found.st_size
