"""The manifests of all sessions, sealed in the cold tier and changed by compare-and-set, so that two stores may race.

The cold tier is the one authority: Redis may be lost, and a store may end at any time, without a session being lost.
Refuses to know chunks' bytes, clocks and sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from sessioncache import manifest as manifests
from sessioncache.manifest import Manifest
from sessioncache.problems import ChunkError, TierError
from sessioncache.several import each_of
from sessioncache.tenants import Tenants, place_of
from sessioncache.tiers import ColdTier

TRIES, READ_AT_ONCE = 20, 256


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is known of the sessions of all tenants."""

    cold: ColdTier
    tenants: Tenants

    async def read(self, tenant: str, session: str) -> Manifest | None:
        """Return a session's manifest, a tombstone too; None for a session that never was."""
        found = await self._read(tenant, session)
        return None if found is None else found[0]

    async def change(
        self, tenant: str, session: str, rule: Callable[[Manifest | None], Manifest | None]
    ) -> Manifest | None:
        """Replace a manifest by what `rule` makes of it (None: it stays as it is); return what it is afterwards."""
        for _ in range(TRIES):
            found = await self._read(tenant, session)
            now, tag = (None, None) if found is None else found
            if (then := rule(now)) is None:
                return now
            secrets = await self.tenants.secrets(tenant)
            key = _key(tenant, session)
            if await self.cold.swap(key, secrets.seal(manifests.written(then), key.encode()), tag):
                return then
        raise TierError(f"the session {session} is changed by others all the time")

    async def all_of(self, tenant: str, *, strictly: bool = False) -> AsyncIterator[Manifest]:
        """List a tenant's manifests, tombstones too; one that is not readable is left out, or a ChunkError."""

        async def kept_as(session: str) -> Manifest | None:
            try:
                return await self.read(tenant, session)
            except ChunkError:
                if strictly:
                    raise
                return None

        entries = self.cold.entries(f"sessions/{place_of(tenant)}/")
        sessions = [entry.key.rpartition("/")[2] async for entry in entries]
        for first in range(0, len(sessions), READ_AT_ONCE):
            for found in await each_of(kept_as, sessions[first : first + READ_AT_ONCE]):
                if found is not None:
                    yield found

    async def forget(self, tenant: str, session: str) -> None:
        """Delete a manifest."""
        await self.cold.delete(_key(tenant, session))

    async def _read(self, tenant: str, session: str) -> tuple[Manifest, str] | None:
        key = _key(tenant, session)
        if (found := await self.cold.tagged(key)) is None:
            return None
        secrets = await self.tenants.secrets(tenant)
        return manifests.read(secrets.open(found[0], key.encode())), found[1]


def _key(tenant: str, session: str) -> str:
    return f"sessions/{place_of(tenant)}/{session}"
