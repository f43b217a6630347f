"""What travels between the session store and its clients: u32 JSON bytes | u32 body bytes | JSON | body, bounded.

Token ids and payloads travel in the body, as they are; everything else is one small JSON object. Both lengths are
little-endian. Refuses to know sockets and what the messages mean.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import orjson

HEAD = struct.Struct("<II")
MOST_MESSAGE_BYTES, MOST_BODY_BYTES = 4 << 20, 64 << 20
MOST_TOKENS = 1 << 20
Octets: TypeAlias = "bytes | memoryview[int]"  # what is large travels as views of it


class FrameError(Exception):
    """Bytes that are no frame of ours; the connection that sent them is of no further use."""


def encode(message: dict[str, Any], body: Sequence[Octets] = ()) -> list[Octets]:
    """Return the pieces of a frame, to be written one after the other: large payloads are not copied."""
    told, length = orjson.dumps(message), sum(map(len, body))
    if len(told) > MOST_MESSAGE_BYTES or length > MOST_BODY_BYTES:
        raise FrameError(f"a message of {len(told)} with a body of {length} bytes is more than a frame may hold")
    return [HEAD.pack(len(told), length) + told, *body]


def lengths(head: Octets) -> tuple[int, int]:
    """Return the bytes of the message and of the body that follow a head."""
    message_bytes, body_bytes = HEAD.unpack(head)
    if message_bytes > MOST_MESSAGE_BYTES or body_bytes > MOST_BODY_BYTES:
        raise FrameError(
            f"a message of {message_bytes} with a body of {body_bytes} bytes is more than a frame may hold"
        )
    if not message_bytes:
        raise FrameError("a frame without a message is none")
    return message_bytes, body_bytes


def message_of(told: Octets) -> dict[str, Any]:
    """Read a message."""
    try:
        message: Any = orjson.loads(told)
    except ValueError as exc:
        raise FrameError("a message is not JSON") from exc
    if not isinstance(message, dict) or type(message.get("id")) is not int:
        raise FrameError("a message is no object with an id")
    return message


def tokens_of(body: Octets) -> array[int]:
    """Read token ids from a body."""
    if len(body) % 4 or len(body) > 4 * MOST_TOKENS:
        raise FrameError(f"{len(body)} bytes are not at most {MOST_TOKENS} token ids")
    (tokens := array("I")).frombytes(body)
    return tokens


def cut(body: memoryview[int], sizes: Sequence[int]) -> list[memoryview[int]]:
    """Cut a body into views of the payloads that it is made of."""
    ends = [0]
    for size in sizes:
        if type(size) is not int or size < 0:
            raise FrameError(f"{size!r} is no size of a payload")
        ends.append(ends[-1] + size)
    if ends[-1] != len(body):
        raise FrameError(f"payloads of {ends[-1]} bytes do not fill a body of {len(body)}")
    return [body[start:end] for start, end in pairwise(ends)]
