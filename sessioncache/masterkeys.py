"""Master keys as they are written: one "id:key" a line, the current one first; a key is 64 hex digits. Pure.

Refuses to know where they are read from. What is wrong is told with its line, and never with the key itself.
"""

from __future__ import annotations

import re

KEY_VARIABLE = "TIDEGATE_MASTER_KEY"  # of the environment; there, commas stand between the lines
HOW_TO_MAKE = "python -c 'import secrets; print(secrets.token_hex(32))'"
DIGITS = 64
_KEY = re.compile(rf"[0-9a-fA-F]{{{DIGITS}}}")
_ONLY = "1"  # the id of a key that was given without one


def read_variable(text: str) -> dict[str, bytes]:
    """Do as `read_keys` does, for what KEY_VARIABLE holds."""
    return read_keys(text.replace(",", "\n"))


def read_keys(text: str) -> dict[str, bytes]:
    """Return the keys by id, the current one first; ValueError says what is wrong with which line."""
    keys: dict[str, bytes] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        key_id, key = _pair(line, number)
        if key_id in keys:
            raise ValueError(f"line {number} has the id {key_id!r} that line {lines[key_id]} has; name each key apart")
        keys[key_id], lines[key_id] = key, number
    if not keys:
        raise ValueError("there is no key in it")
    return keys


def _pair(line: str, number: int) -> tuple[str, bytes]:
    key_id, _, key = (part.strip() for part in line.rpartition(":"))
    if not _KEY.fullmatch(key):
        what = f"of {len(key)} characters" if len(key) != DIGITS else "with other characters than hex digits"
        raise ValueError(f'line {number} has a key {what}; a line is "id:key", and a key is {DIGITS} hex digits')
    return key_id or _ONLY, bytes.fromhex(key)
