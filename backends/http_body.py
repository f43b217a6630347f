"""The answer of a server as it comes: none of it later, and none of it larger, than is allowed.

Refuses to know what it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

import aiohttp

from backends.api import BackendError

_REST_S = 0.2  # for the end of the body after the end of the answer, so that the connection can be used again

Waited = TypeVar("Waited")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may take until its first byte, and be silent after it."""

    first_byte_s: float
    idle_s: float


class Body:
    """One answer, from the question to the last byte."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._deadline = asyncio.get_running_loop().time() + patience.first_byte_s
        self._setting, self._limit_s = "first_byte_timeout", patience.first_byte_s

    async def of(self, posted: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
        """Wait for the status and the headers."""
        self._response = await self._within(posted)
        return self._response

    @property
    def content_type(self) -> str:
        """What the server says that it sends."""
        return self._response.content_type

    async def piece(self) -> bytes:
        """Wait for what comes next; nothing at the end."""
        received = await self._within(self._response.content.readany())
        self._setting, self._limit_s = "idle_timeout", self._patience.idle_s
        self._deadline = asyncio.get_running_loop().time() + self._limit_s
        return received

    async def whole(self, limit_bytes: int) -> bytes:
        """Wait for all of it; what is over the limit is left out."""
        received = bytearray()
        while len(received) < limit_bytes and (piece := await self.piece()):
            received += piece
        return bytes(received[:limit_bytes])

    async def rest(self) -> None:
        """Take what follows the end of the answer, if it is there at once."""
        try:
            async with asyncio.timeout(_REST_S):
                await self._response.content.readany()
        except (TimeoutError, aiohttp.ClientError):
            return  # the answer was whole; only the connection cannot be used again

    async def _within(self, awaited: Awaitable[Waited]) -> Waited:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await awaited
        except aiohttp.ServerTimeoutError:
            raise  # of the connection: not what is waited for here, though a TimeoutError too
        except TimeoutError as exc:
            message = f"the server behind the model was silent for {self._limit_s:g} s, which is its {self._setting}"
            is_first = self._setting == "first_byte_timeout"
            raise BackendError("broken", message, retryable=is_first, code="upstream_timeout") from exc
