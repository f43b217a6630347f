"""Cross-origin requests: which web pages may call the API from a browser. None may unless it is configured.

Refuses to know paths and callers: a page still needs a key where callers need one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.exchange import Exchange, respond

_METHODS = "GET, HEAD, POST, DELETE"
_READABLE = "x-request-id, request-id, retry-after, x-should-retry"
_REMEMBERED_S = 600


class Cors:
    """The origins of the pages that may call; "*" is every page."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request comes from a page that may call."""
        origin = headers.get("origin")
        return origin is not None and not self._origins.isdisjoint({"*", origin.lower()})

    async def answer_preflight(self, exchange: Exchange) -> bool:
        """Answer what a browser asks before it sends a page's request; whether it was that."""
        headers = exchange.headers
        if exchange.method != "OPTIONS" or "access-control-request-method" not in headers or not self.allows(headers):
            return False
        told = {
            **_permission(headers),
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": headers.get("access-control-request-headers", "*"),
            "access-control-max-age": str(_REMEMBERED_S),
        }
        await respond(exchange, 204, told, b"")
        return True

    def shared(self, exchange: Exchange) -> Exchange:
        """Return the exchange whose answer the asking page may read, or the same one where no page may."""
        return SharedExchange(exchange) if self.allows(exchange.headers) else exchange


NO_PAGE = Cors(())


class SharedExchange:
    """An exchange whose answer says that its page may read it; else the one that it is made of."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.method, self.path, self.query = exchange.method, exchange.path, exchange.query
        self.headers, self.peer = exchange.headers, exchange.peer
        self.body, self.write, self.end = exchange.body, exchange.write, exchange.end

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Answer with these headers and the page's permission."""
        permission = _permission(self.headers) | {"access-control-expose-headers": _READABLE}
        await self._exchange.start(status, {**headers, **permission})


def _permission(headers: Mapping[str, str]) -> dict[str, str]:
    return {"access-control-allow-origin": headers["origin"], "vary": "origin"}
