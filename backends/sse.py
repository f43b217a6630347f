"""Server-sent events, sans-IO: bytes in, events out, however the bytes were split.

Lines end in LF, CR or CRLF; comments, ids and retry times are skipped; a field's value loses one leading space.
Refuses to know HTTP and what the events say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"


class SseError(Exception):
    """The peer sent something that is too large to be an event."""


@dataclass(frozen=True, slots=True)
class Event:
    """What one event says; `kind` is empty unless it was named."""

    data: bytes
    kind: bytes = b""


class EventReader:
    """Yields an event as soon as its blank line is there. Keeps at most `limit_bytes` of an unfinished one."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._kind = b""
        self._held = 0
        self._skips_lf = False  # a CR has ended the line already; a LF that follows belongs to it
        self._is_first = True

    def feed(self, received: bytes) -> Iterator[Event]:
        """Yield the events that are complete now; exhaust it before feeding again."""
        if self._skips_lf and received:
            received = received.removeprefix(b"\n")
        self._skips_lf = received.endswith(b"\r") or (self._skips_lf and not received)
        for line in received.splitlines(keepends=True):
            self._line += line
            if self._held + len(self._line) > self._limit:
                raise SseError(f"an event is larger than {self._limit} bytes")
            if line.endswith((b"\n", b"\r")):
                yield from self._take(bytes(self._line).rstrip(b"\r\n"))
                self._line.clear()

    def _take(self, line: bytes) -> Iterator[Event]:
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_BOM)
        if line:
            self._field(line)
            return
        if self._data:
            yield Event(b"\n".join(self._data), self._kind)
        self._data, self._kind, self._held = [], b"", 0

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._held += len(line) + 1
        elif name == b"event":
            self._kind = value
