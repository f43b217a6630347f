r"""A session's file from outside: magic "TGSESS1\n", then records, each u32 length | bytes.

Refuses to know what the records hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from sessioncache.wire import Octets

MAGIC = b"TGSESS1\n"
LENGTH = struct.Struct("<I")
MOST_RECORDS = 1 << 14


def joined(records: Sequence[Octets]) -> bytes:
    """Return records as a file."""
    return MAGIC + b"".join(part for each in records for part in (LENGTH.pack(len(each)), each))


def split(file: bytes) -> Iterator[bytes]:
    """Give the records of a file; ValueError as soon as one is not whole."""
    if not file.startswith(MAGIC):
        raise ValueError("this is not the file of a session")
    at = len(MAGIC)
    for _ in range(MOST_RECORDS):
        if at == len(file):
            return
        if len(file) - at < LENGTH.size:
            raise ValueError("the file of a session is cut off")
        (length,) = LENGTH.unpack_from(file, at)
        at += LENGTH.size
        if length > len(file) - at:
            raise ValueError("the file of a session is cut off")
        yield file[at : at + length]
        at += length
    raise ValueError(f"the file of a session has more than {MOST_RECORDS} records")
