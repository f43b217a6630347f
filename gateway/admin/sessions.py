"""What the admin port answers about sessions: list, show, erase, export, import, sweep.

Refuses to know who may ask and what a session holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from urllib.parse import parse_qs

from gateway.control.store import StoreKeeper
from gateway.exchange import Exchange, id_headers, request_id_of, respond
from gateway.lastturns import LastTurns
from gateway.plain import Answering, allowed, respond_json
from gateway.refusal import Refusal
from sessioncache.client import StoreClient, StoreError

ROOT = "/admin/sessions"
ASK_TIMEOUT_S = 60.0
MOST_IMPORT_BYTES = 1 << 30
_STATUS = {"miss": (404, "not_found"), "refused": (400, "refused"), "broken": (502, "store_failed")}


@dataclass(slots=True)
class SessionsAdmin:
    """Sessions as the operator sees them; `store` is None where none are kept."""

    store: StoreKeeper | None
    turns: LastTurns

    def answering(self, exchange: Exchange) -> Answering | None:
        """Find what answers a path below /admin/sessions; None for one that is not there."""
        match exchange.path.removeprefix(ROOT).strip("/").split("/"):
            case [""]:
                verbs = {"GET": self._list, "POST": self._import, "DELETE": self._erase_tenant}
            case ["gc"]:
                verbs = {"POST": self._gc}
            case [_]:
                verbs = {"GET": self._show, "DELETE": self._erase}
            case [_, "export"]:
                verbs = {"GET": self._export}
            case _:
                return None
        return allowed(exchange, tuple(verbs), verbs.get(exchange.method, self._list))

    async def stats(self) -> dict[str, object] | None:
        """Return what the store holds and has counted; None where there is none, or it does not answer."""
        return None if self.store is None else await self.store.stats() or {"unreachable": True}

    async def _list(self, exchange: Exchange) -> None:
        async with self._asked() as client:
            await respond_json(exchange, 200, {"sessions": await client.sessions(_tenant(exchange))})

    async def _show(self, exchange: Exchange) -> None:
        async with self._asked() as client:
            told = await client.show(name := _name(exchange))
            given = await self._given(client, told["tenant"], name)
        turns = [asdict(turn) for turn in self.turns.of(told["tenant"], given)] if given is not None else []
        await respond_json(exchange, 200, {**told, "turns": turns})

    async def _erase(self, exchange: Exchange) -> None:
        async with self._asked() as client:
            tenant = (await client.show(name := _name(exchange)))["tenant"]
            given = await self._given(client, tenant, name)
            count = await client.erase(name)
        if given is not None:
            self.turns.forget(tenant, given)
        await respond_json(exchange, 200, {"erased": name, "chunks": count})

    async def _erase_tenant(self, exchange: Exchange) -> None:
        tenant = _tenant(exchange)
        if tenant is None:
            raise Refusal(400, "tenant_missing", "say whose sessions: DELETE /admin/sessions?tenant=NAME")
        async with self._asked() as client:
            await respond_json(exchange, 200, {"tenant": tenant, "deleted": await client.erase_tenant(tenant)})

    async def _export(self, exchange: Exchange) -> None:
        async with self._asked() as client:
            file = await client.export(_name(exchange))
        headers = {"content-type": "application/octet-stream", **id_headers(request_id_of(exchange.headers))}
        await respond(exchange, 200, headers, file)

    async def _import(self, exchange: Exchange) -> None:
        file = await exchange.body(MOST_IMPORT_BYTES)
        async with self._asked() as client:
            await respond_json(exchange, 200, {"imported": await client.import_(file)})

    async def _gc(self, exchange: Exchange) -> None:
        async with self._asked() as client:
            await respond_json(exchange, 200, await client.gc())

    async def _given(self, client: StoreClient, tenant: str, name: str) -> str | None:
        """Return the id that the client gave a session, if it had a turn here."""
        known = self.turns.sessions(tenant)
        names = await client.names(tenant, known)
        return next((given for given, its_name in zip(known, names, strict=True) if its_name == name), None)

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[StoreClient]:
        """Give the store's client; what it cannot do becomes a refusal."""
        if self.store is None:
            raise Refusal(404, "no_sessions", "no sessions are kept: [sessions] enabled is false, or no worker is ours")
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                yield await self.store.client()
        except TimeoutError as exc:
            raise Refusal(503, "store_unreachable", "the session store does not answer; see its log lines") from exc
        except StoreError as exc:
            status, code = _STATUS.get(exc.kind, (503, "store_unreachable"))
            raise Refusal(status, code, str(exc)) from exc


def _name(exchange: Exchange) -> str:
    return exchange.path.removeprefix(ROOT).strip("/").split("/")[0]


def _tenant(exchange: Exchange) -> str | None:
    return parse_qs(exchange.query).get("tenant", [None])[0]
