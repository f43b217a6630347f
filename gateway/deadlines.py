"""The time limit of every open call, and the end of all of them when the gateway stops.

Refuses to know what the calls do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.refusal import Refusal


class Deadlines:
    """Gives each call `limit_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._open: set[asyncio.Timeout] = set()
        self._is_over = False

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """Cancel the block and refuse its call when its time is over, or everybody's."""
        try:
            async with asyncio.timeout(0 if self._is_over else self._limit_s) as timeout:
                self._open.add(timeout)
                yield
        except TimeoutError as exc:
            if not timeout.expired():
                raise
            raise self._refusal() from exc
        finally:
            self._open.discard(timeout)

    def end_all(self) -> None:
        """Let every open call be refused now, and every later one at once."""
        self._is_over = True
        for timeout in self._open:
            if not timeout.expired():
                timeout.reschedule(asyncio.get_running_loop().time())

    def _refusal(self) -> Refusal:
        if self._is_over:
            return Refusal(503, "stopping", "the gateway is stopping; try again", retry_after_s=5)
        limit = f"{self._limit_s:g} s"
        return Refusal(504, "timeout", f"the call took longer than {limit}, which is request_timeout in gateway.toml")
