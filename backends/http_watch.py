"""Whether a server is there: asked now and then, at once when a call found nobody, ever more rarely while it is gone.

Refuses to know calls. Any status below 500 shows that it is there; whether it takes the key, the first call finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal

import aiohttp

from backends.lenient import children, count, parsed, text

_EVERY_S = 30.0
_FIRST_PAUSE_S = 0.5
_PATIENCE_S = 10.0
_LIST_LIMIT_BYTES = 4 << 20

Changed = Callable[[Literal["ready", "down"], str], None]


class Watch:
    """What is known of one server. It is neither ready nor down until it has been asked for the first time."""

    def __init__(self, model: str, context_tokens: int, changed: Changed) -> None:
        self._model, self._changed = model, changed
        self._suspicion = asyncio.Event()
        self.context_tokens = context_tokens
        self.is_ready = self.is_down = False

    def suspect(self) -> None:
        """Ask at once: a call has found nobody there. Others wait for the answer meanwhile."""
        self.is_ready = False
        self._suspicion.set()

    async def run(self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> None:
        """Ask for the list of models again and again."""
        pause_s = _FIRST_PAUSE_S
        while True:
            self._suspicion.clear()
            reason = await self._trouble(session, url, headers)
            self._take(reason)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s if reason else _EVERY_S):
                    await self._suspicion.wait()
            pause_s = min(pause_s * 2, _EVERY_S) if reason else _FIRST_PAUSE_S

    def _take(self, reason: str) -> None:
        """Tell what has changed."""
        was = self.is_ready, self.is_down
        self.is_ready, self.is_down = not reason, bool(reason)
        if (self.is_ready, self.is_down) != was:
            self._changed("down" if reason else "ready", reason)

    async def _trouble(self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> str:
        """Return why the server does not serve, or nothing."""
        try:
            async with (
                asyncio.timeout(_PATIENCE_S),
                session.get(url, headers=headers, allow_redirects=False) as response,
            ):
                if response.status >= 500:
                    return f"{url} answers with the status {response.status}"
                self._learn(await _bounded(response))
        except TimeoutError:
            return f"{url} does not answer"
        except aiohttp.ClientError as exc:
            return f"{url} cannot be reached: {exc}"
        return ""

    def _learn(self, body: bytes) -> None:
        """Take over the model's window, if the server tells it."""
        entries = children(parsed(body), "data")
        windows = [count(each, "max_model_len") for each in entries if text(each, "id") == self._model]
        self.context_tokens = next(filter(None, windows), self.context_tokens)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    received = bytearray()
    async for piece in response.content.iter_any():
        received += piece
        if len(received) > _LIST_LIMIT_BYTES:
            return b""
    return bytes(received)
