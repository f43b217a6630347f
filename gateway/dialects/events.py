"""Server-sent events with names, and the constant bytes around a text that changes with every event.

Refuses to know which events there are.
"""

from __future__ import annotations

import orjson

COMMENT = b": going on\n\n"  # every reader of server-sent events skips a line that begins with a colon
MARK = "\x00text"  # stands for the text while its surroundings are encoded


def event(name: str, body: bytes) -> bytes:
    """Write one event."""
    return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"


def around(encoded: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and after `MARK` in an encoded event."""
    head, _, tail = encoded.partition(orjson.dumps(MARK))
    return head, tail
