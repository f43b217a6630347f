"""What a dialect is: how one API's bodies become a `Call`, and how deltas and refusals become its bytes.

Refuses to know HTTP, backends and tenants' rights; a dialect is pure and does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from backends.api import Call, Delta, Usage
from gateway.refusal import Refusal


class Answer(Protocol):
    """The answer to one call, turned into bytes: a stream (`begin`, `chunk`…, then `end` or `error`) or `whole`.

    It may remember what it has sent. What never changes within a call is encoded once, not for every delta.
    """

    def begin(self, usage: Usage | None) -> bytes:
        """Open the stream; `usage` holds the prompt's exact counts if the backend has told them already."""
        ...

    def chunk(self, delta: Delta) -> bytes:
        """Say one delta; empty when there is nothing to say."""
        ...

    def end(self, usage: Usage | None) -> bytes:
        """Close a stream whose every sequence has finished, with the dialect's end marker."""
        ...

    def error(self, refusal: Refusal, request_id: str) -> bytes:
        """Say, after `begin`, that the answer stays incomplete. No end marker is in it and none may follow it."""
        ...

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """Give the body of an answer that was not streamed, from all its deltas."""
        ...


class Endpoint(Protocol):
    """One endpoint of one API: what its bodies mean, and how it says no."""

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read a body, keeping unknown fields; refuses (400) what it cannot mean, naming the field by its path."""
        ...

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Give the HTTP status and body of a refusal made before the first byte."""
        ...


class Dialect(Endpoint, Protocol):
    """An endpoint whose calls a model answers; `ping` says in a stream, at any time, that the answer goes on."""

    ping: bytes

    def answer(self, call: Call, *, now: float) -> Answer:
        """Prepare the answer to `call`, dated `now` in seconds since 1970."""
        ...
