"""One server's connections: posts go out, bodies come back, and the library's exceptions become a backend's.

Refuses to know what is asked and answered. Redirects are not followed and cookies not kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
import orjson

from backends.api import BackendError
from backends.http_body import Body, Patience
from backends.upstream import Post, broken, refusal

_REASON_LIMIT_BYTES = 64 << 10
_KEEP_ALIVE_S = 4.0  # uvicorn, on which most of these servers run, closes after 5: who closes first loses no call


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server is, how it is spoken to, and how long it may keep silent; `url` ends with the API's version."""

    url: str
    model: str
    dialect: Literal["openai", "anthropic"] = "openai"
    api_key: str = field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    context_tokens: int = 0
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0


class Client:
    """Asks one server; `suspect` is called when nobody seems to be there."""

    def __init__(self, server: Server, headers: Mapping[str, str], suspect: Callable[[], None]) -> None:
        self._server, self._suspect = server, suspect
        self.headers = {"accept-encoding": "identity", "user-agent": "tidegate", **headers, **dict(server.headers)}
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        """Return the pool of connections. It has no bound of its own: there are as many as calls, which are bounded."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),  # sets TCP_NODELAY
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._server.connect_timeout_s),
            )
        return self._session

    async def close(self) -> None:
        """Close all connections; calling it twice is fine."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def posted(self, post: Post, headers: Mapping[str, str]) -> AsyncIterator[Body]:
        """Post; give the body of the answer, or raise what its status says. An unread rest closes the connection."""
        body = Body(Patience(self._server.first_byte_timeout_s, self._server.idle_timeout_s))
        base = self._server.url.removesuffix("/v1") if post.is_at_root else self._server.url
        response = await body.of(
            self.session().post(
                base + post.path,
                data=orjson.dumps(post.body),
                headers={**self.headers, "content-type": "application/json", **headers},
                allow_redirects=False,
            )
        )
        try:
            if response.status != 200:
                raise refusal(response.status, response.headers, await body.whole(_REASON_LIMIT_BYTES))
            yield body
            await body.rest()
        finally:
            response.release()

    @contextmanager
    def translated(self, has_spoken: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Turn what the library raises into what a backend may raise."""
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as exc:
            self._suspect()
            raise BackendError("unreachable", "the server behind the model cannot be reached", retryable=True) from exc
        except aiohttp.ClientError as exc:
            if not has_spoken():
                self._suspect()
            raise broken("cut the connection", has_spoken=has_spoken()) from exc
