"""Sessions in and out of the store, chunk by chunk, so that a file may be larger than a frame or our memory.

Refuses to know sockets, and how a file is laid out.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from sessioncache import archive, container, wire
from sessioncache.archive import Head
from sessioncache.client import Prefix, StoreError
from sessioncache.erasing import SHARED
from sessioncache.identity import CHUNK_TOKENS
from sessioncache.prefixes import Handle, Prefixes
from sessioncache.problems import ChunkError, VaultError
from sessioncache.sessions import Sessions
from sessioncache.tenants import OPERATOR
from sessioncache.vault import Secrets
from sessioncache.wire import Octets


@dataclass(frozen=True, slots=True)
class Transfer:
    """Export and import. Both hold one chunk at a time."""

    prefixes: Prefixes
    sessions: Sessions

    async def begin(self, name: str) -> tuple[Handle, list[bytes]]:
        """Return what a session is made of, as far as it is stored, and the first records of its file."""
        tenant, kept = await self.sessions.find(name)
        codec, tokens = "", array("I")
        for key in kept.chunks:
            if (found := await self._described(key, tenant)) is None:
                break
            codec = found[0]
            tokens.extend(found[1])
        if not tokens:
            raise StoreError("miss", f"nothing of the session {name} is stored any more")
        common = sum(key.startswith(SHARED) for key in kept.chunks[: len(tokens) // CHUNK_TOKENS])
        head = Head(tenant, name, kept.model, codec, tokens, common, dict(kept.summary))
        return await self._handle(head), list(archive.begin(self.prefixes.tenants.master, head))

    async def chunk(self, handle: Handle, number: int, first_records: Sequence[Octets]) -> bytes:
        """Return the record of one chunk."""
        head, secrets = self._opened(first_records)
        layers = await self.prefixes.fetch(handle, number, 0)
        return await asyncio.to_thread(archive.written, head, number, layers, secrets)

    async def take_in(self, first_records: Sequence[Octets]) -> Handle:
        """Name what a file holds, in the secret that its tenant has here."""
        return await self._handle(self._opened(first_records)[0])

    async def take_chunk(self, handle: Handle, number: int, records: Sequence[Octets]) -> None:
        """Check and store one chunk; those of the operator's common prompts are left to be computed."""
        *first_records, stored = records
        head, secrets = self._opened(first_records)
        layers = await asyncio.to_thread(archive.read, head, number, stored, secrets)
        if not handle.links[number].key.startswith(SHARED):
            await self.prefixes.save(handle, number, layers)

    async def end(self, handle: Handle, first_records: Sequence[Octets]) -> str:
        """Note the session whose chunks were taken in; who imports an erased session wants it back."""
        head, _ = self._opened(first_records)
        kept = await self.sessions.ledger.read(head.tenant, head.session)
        if kept is not None and kept.is_gone:
            await self.sessions.ledger.forget(head.tenant, head.session)
        return await self.sessions.note_as(handle, head.session, head.summary)

    async def _handle(self, head: Head) -> Handle:
        common = head.common * CHUNK_TOKENS
        return await self.prefixes.open(Prefix(head.tenant, head.model, head.codec, head.tokens, common))

    def _opened(self, first_records: Sequence[Octets]) -> tuple[Head, Secrets]:
        if len(first_records) != 2:
            raise StoreError("refused", "a session's file begins with two records")
        try:
            return archive.opened(self.prefixes.tenants.master, *first_records)
        except VaultError as exc:
            raise StoreError("refused", f"the file is not of this master key: {exc}") from exc

    async def _described(self, key: str, tenant: str) -> tuple[str, array[int]] | None:
        secrets = await self.prefixes.tenants.secrets(OPERATOR if key.startswith(SHARED) else tenant)
        async for place, stored in self.prefixes.shelf.copies(key):
            try:
                chunk = container.read(stored, total=len(stored))
                tokens = chunk.open(0, chunk.frames(stored)[0], secrets)
            except ChunkError:
                await self.prefixes.shelf.spoiled(place, key)
                continue
            return chunk.header.codec, wire.tokens_of(tokens)
        return None
