"""The worker's connection to the session store: made when needed, given up after a failure for a while that doubles.

Refuses to know what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sessioncache.client import Found, Prefix, StoreClient, StoreError

CONNECT_TIMEOUT_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0


class Link:
    """One connection, made again after it was lost."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._client: StoreClient | None = None
        self._lock = asyncio.Lock()
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0

    async def client(self) -> StoreClient:
        """Return the connection; StoreError at once while a failure is fresh."""
        async with self._lock:
            if asyncio.get_running_loop().time() < self._not_before:
                raise StoreError("unreachable", "the session store did not answer a moment ago")
            if self._client is not None and self._client.is_connected:
                return self._client
            self._client = await self._connect()
            return self._client

    @asynccontextmanager
    async def looked_up(self, prefix: Prefix, timeout_s: float) -> AsyncIterator[tuple[StoreClient, Found]]:
        """Look a prefix up and let go of its handle in the end. StoreError, TimeoutError."""
        client = await self.client()
        try:
            async with asyncio.timeout(timeout_s):
                found = await client.lookup(prefix)
        except TimeoutError:
            self._rest()
            raise
        self._pause_s = FIRST_PAUSE_S
        try:
            yield client, found
        finally:
            await _closed(client, found.handle)

    async def aclose(self) -> None:
        """End the connection."""
        if self._client is not None:
            await self._client.aclose()

    async def _connect(self) -> StoreClient:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await StoreClient.connect(self._path)
        except (StoreError, TimeoutError) as exc:
            self._rest()
            raise StoreError("unreachable", f"the session store cannot be reached: {exc}") from exc

    def _rest(self) -> None:
        """Ask nothing for a while, a longer one each time."""
        self._not_before = asyncio.get_running_loop().time() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


async def _closed(client: StoreClient, handle: int) -> None:
    """Forget a handle; a store that is gone has forgotten it."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await client.close(handle)
    except (StoreError, TimeoutError):
        return
