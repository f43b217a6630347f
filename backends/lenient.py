"""Typed readers of JSON that other servers sent: what is not what it should be counts as missing.

Refuses to know what any field means.
"""

from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Mapping

import orjson

Json = Mapping[str, object]
NOTHING: Json = {}


def parsed(text: bytes) -> Json:
    """Return a JSON object, or an empty one when the text is none."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return NOTHING
    return value if isinstance(value, dict) else NOTHING


def child(values: Json, name: str) -> Json:
    """Return an object."""
    value = values.get(name)
    return value if isinstance(value, dict) else NOTHING


def children(values: Json, name: str) -> list[Json]:
    """Return the objects of an array."""
    items = values.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def text(values: Json, name: str) -> str:
    """Return a string, or an empty one."""
    value = values.get(name)
    return value if isinstance(value, str) else ""


def count(values: Json, name: str) -> int | None:
    """Return a whole number of zero or more."""
    value = values.get(name)
    return value if type(value) is int and value >= 0 else None


def numbers(values: Json, name: str) -> list[int]:
    """Return the whole numbers of an array."""
    items = values.get(name)
    return [item for item in items if type(item) is int] if isinstance(items, list) else []


def vector_of(value: object) -> bytes:
    """Return numbers, or base64 of them, as little-endian float32; nothing when it is neither."""
    try:
        if isinstance(value, str):
            return b64decode(value, validate=True)
        return struct.pack(f"<{len(value)}f", *value) if isinstance(value, list) else b""
    except (struct.error, ValueError):
        return b""


def real(values: Json, name: str) -> float:
    """Return a number, or zero."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
