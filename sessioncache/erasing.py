"""Erasing for good: a session's or a tenant's, from all tiers, looked after, and gone on with where a tier failed.

A session's tombstone comes first, so that its name refuses writes; it holds what is still to be deleted until each
tier has said that it is gone. A tier that is away leaves the session listed as being erased: erasing it again, or the
store's own next look, goes on with what is left.

Refuses to know payloads, sockets and what clients call their sessions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from sessioncache.ledger import Ledger
from sessioncache.manifest import Manifest, erased
from sessioncache.problems import TierError
from sessioncache.several import each_of
from sessioncache.shelf import Shelf
from sessioncache.tenants import OPERATOR, place_of
from sessioncache.tiers import Tier

LATE_S = 900.0  # a chunk of an erased session is not taken back for so long: longer than any worker holds one back
MOST_RECENT = 1 << 18
SHARED = f"chunks/{place_of(OPERATOR)}/"


@dataclass(slots=True)
class Erasing:
    """What is erased. `wall` is the time of day, `now` never jumps; `unfinished` holds (tenant, session)."""

    shelf: Shelf
    ledger: Ledger
    wall: Callable[[], float]
    now: Callable[[], float]
    unfinished: set[tuple[str, str]] = field(default_factory=set)
    _recent: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def may_save(self, key: str) -> bool:
        """Whether a chunk may be stored: not if it belonged to a session that was erased just now."""
        return self.now() - self._recent.get(key, -LATE_S) >= LATE_S

    async def session(self, tenant: str, session: str) -> int:
        """Erase a session, or go on erasing it; return how many chunks were deleted. TierError while some are left."""
        wall = self.wall()

        def bury(now: Manifest | None) -> Manifest | None:
            return None if now is None or now.is_erased else erased(now, wall)

        kept = await self.ledger.change(tenant, session, bury)
        if kept is None or not kept.left:
            return 0
        self.unfinished.add((tenant, session))
        count = await self.chunks(tenant, kept.left)
        await self.ledger.change(tenant, session, lambda now: replace(now, left=()) if now and now.is_erased else None)
        self.unfinished.discard((tenant, session))
        return count

    async def chunks(self, tenant: str, keys: Iterable[str]) -> int:
        """Delete those of a tenant's own chunks that no session has; return how many those were."""
        live = {key async for kept in self.ledger.all_of(tenant) for key in kept.chunks}
        gone = [key for key in keys if key not in live and not key.startswith(SHARED)]
        for key in gone:
            self._recent[key] = self.now()
            if len(self._recent) > MOST_RECENT:
                self._recent.popitem(last=False)
        await each_of(self.shelf.erase, gone)
        return len(gone)

    async def tenant(self, tenant: str) -> int:
        """Erase a tenant: its secret first, so that no copy of anything can be read, then all that it sealed."""
        await self.ledger.tenants.erase(tenant)
        owned = [f"{kind}/{place_of(tenant)}/" for kind in ("chunks", "sessions")]
        places = [(tier, prefix) for prefix in owned for tier in self.shelf.places.values()]
        counts = await each_of(lambda place: self._emptied(tenant, *place), places)
        self.unfinished -= {each for each in self.unfinished if each[0] == tenant}
        return sum(counts)

    async def go_on(self) -> None:
        """Go on with what a tier that failed has left."""
        for tenant, session in list(self.unfinished):
            await self.session(tenant, session)

    async def _emptied(self, tenant: str, tier: Tier, prefix: str) -> int:
        keys = [entry.key async for entry in tier.entries(prefix)]
        await each_of(partial(self._deleted, tier), keys)
        if [entry.key async for entry in tier.entries(prefix)]:
            raise TierError(f"{tenant!r} still has something stored after it was erased; erase it again")
        return len(keys)

    async def _deleted(self, tier: Tier, key: str) -> None:
        await tier.delete(key)
        self.shelf.forget(key)
