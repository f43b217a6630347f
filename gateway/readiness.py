"""Calls that wait until a replica can take them.

Refuses to know replicas; whoever sees one change rings. At most `most` calls wait, the next one is refused.
"""

from __future__ import annotations

import asyncio

from gateway.refusal import Refusal


class Readiness:
    """A bell with a count of its rings, so that nobody who looked away misses one."""

    def __init__(self, *, most: int, patience_s: float) -> None:
        self.rings = 0
        self._most, self._patience_s = most, patience_s
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake everybody who waits: some replica has changed."""
        self.rings += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, since: int, deadline: float) -> None:
        """Wait until the bell has rung more than `since` times; refuse (503) when the loop's time is over."""
        if not await self._rang(since, deadline):
            raise Refusal(503, "unavailable", "no replica of the model is ready; try again", retry_after_s=10)

    async def rang(self, since: int, *, within_s: float) -> bool:
        """Wait for a short while; return whether the bell has rung more than `since` times."""
        return await self._rang(since, asyncio.get_running_loop().time() + within_s)

    def deadline(self) -> float:
        """Return until when a call that begins to wait now may wait, on the loop's clock."""
        return asyncio.get_running_loop().time() + self._patience_s

    async def _rang(self, since: int, deadline: float) -> bool:
        if self.rings > since:
            return True
        if len(self._waiters) >= self._most:
            raise Refusal(503, "overloaded", "no replica is ready and too many calls wait for one", retry_after_s=5)
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True
