"""One HTTP request and its answer, as the request path sees them.

Refuses to know sockets, framing and which server library runs underneath.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Protocol

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{1,64})?")


class Exchange(Protocol):
    """A request that waits for exactly one answer: `start`, any number of `write`, `end`.

    When the client goes away the task that runs the exchange is cancelled; a `write` that finds out first raises
    ConnectionResetError. Either way nothing more needs to be written.
    """

    @property
    def method(self) -> str:
        """The method in capitals."""
        ...

    @property
    def path(self) -> str:
        """The decoded path, without the query."""
        ...

    @property
    def query(self) -> str:
        """What follows the question mark, not decoded; empty when there is none."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers; look them up by lower-case names."""
        ...

    @property
    def peer(self) -> str:
        """The client's address, or what a unix socket has instead."""
        ...

    async def body(self, limit: int) -> bytes:
        """Read the whole body, once.

        Refuses a longer one (413, `request_too_large`): before reading it when Content-Length tells, else at the
        limit. The connection is closed after the answer then, as the rest of the body is in the way.
        """
        ...

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Answer with this status and these headers; without a content-length the body is framed by its chunks.

        The head may be held back until the first `write` or `end`, so that both leave in one packet.
        """
        ...

    async def write(self, chunk: bytes) -> None:
        """Send a piece of the body at once; waits while the client reads too slowly."""
        ...

    async def end(self) -> None:
        """Complete the answer. An answer left without it is broken off, which the client can see."""
        ...


async def respond(exchange: Exchange, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Give a whole answer at once."""
    await exchange.start(status, {**headers, "content-length": str(len(body))})
    await exchange.write(body)
    await exchange.end()


def request_id_of(headers: Mapping[str, str]) -> str:
    """Return the client's own x-request-id if it is well-formed, else a new one."""
    theirs = headers.get("x-request-id", "")
    return theirs if _REQUEST_ID.fullmatch(theirs) else f"req_{uuid.uuid4().hex}"


def id_headers(request_id: str) -> dict[str, str]:
    """Write a request's id as both SDKs read it: OpenAI's the first, Anthropic's the second."""
    return {"x-request-id": request_id, "request-id": request_id}


def traceparent_of(headers: Mapping[str, str]) -> str | None:
    """Return the W3C trace that the request belongs to, if it is well-formed."""
    theirs = headers.get("traceparent", "")
    return theirs if _TRACEPARENT.fullmatch(theirs) else None
