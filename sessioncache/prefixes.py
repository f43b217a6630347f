"""Chunks of a prefix: what is stored of it, its payloads, and new ones sealed. All heavy work is beside the loop.

Refuses to know sessions, sockets and which tier is which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sessioncache import container
from sessioncache.client import Prefix
from sessioncache.identity import CHUNK_TOKENS, Scope, names
from sessioncache.problems import ChunkError
from sessioncache.shelf import Place, Shelf
from sessioncache.tenants import OPERATOR, Tenants, place_of
from sessioncache.vault import Secrets
from sessioncache.wire import Octets

Result = TypeVar("Result")
LOOKED_UP_FIRST = 16


@dataclass(frozen=True, slots=True)
class Link:
    """One chunk of a prefix: its key in the tiers, and whose secrets seal it."""

    key: str
    name: str
    secrets: Secrets


@dataclass(frozen=True, slots=True)
class Handle:
    """A prefix whose chunks are named; it was looked up at `seen_s`, by a clock that never jumps."""

    prefix: Prefix
    links: tuple[Link, ...]
    secrets: Secrets
    seen_s: float

    @property
    def keys(self) -> list[str]:
        """The chunks' keys, in order."""
        return [link.key for link in self.links]

    def header(self, chunk: int) -> container.Header:
        """Return what the header of a chunk must say, but for the sizes of its frames."""
        prefix, first = self.prefix, chunk * CHUNK_TOKENS
        return container.Header(self.links[chunk].name, prefix.model, prefix.codec, first, CHUNK_TOKENS, ())

    def tokens(self, chunk: int) -> Sequence[int]:
        """Return the token ids of a chunk."""
        return self.prefix.tokens[chunk * CHUNK_TOKENS : (chunk + 1) * CHUNK_TOKENS]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What can be asked about prefixes. `beside` runs what would hold up the loop."""

    shelf: Shelf
    tenants: Tenants
    beside: Executor

    async def open(self, prefix: Prefix) -> Handle:
        """Name the chunks of a prefix."""
        seen_s = self.shelf.now()
        secrets = await self.tenants.secrets(prefix.tenant)
        own = Scope(secrets.naming, prefix.model, prefix.codec)
        shared = prefix.common_tokens // CHUNK_TOKENS
        operator = await self.tenants.secrets(OPERATOR) if shared else secrets
        common = Scope(operator.naming, prefix.model, prefix.codec) if shared else None
        found = await self._run(lambda: names(prefix.tokens, own, common=common, common_tokens=prefix.common_tokens))
        places = place_of(OPERATOR), place_of(prefix.tenant)
        links = [
            Link(f"chunks/{places[number >= shared]}/{name}", name, operator if number < shared else secrets)
            for number, name in enumerate(found)
        ]
        return Handle(prefix, tuple(links), secrets, seen_s)

    async def leading(self, handle: Handle) -> list[tuple[Place, int]]:
        """Say where the leading chunks are, up to the first that is nowhere."""
        found: list[tuple[Place, int]] = []
        keys, several = handle.keys, LOOKED_UP_FIRST
        while keys[len(found) :]:
            for place in await self.shelf.find(keys[len(found) : len(found) + several]):
                if place is None:
                    return found
                found.append(place)
            several *= 4  # what begins so is often known to its end
        return found

    async def missing(self, handle: Handle) -> list[int]:
        """Return the chunks that are nowhere."""
        return [number for number, place in enumerate(await self.shelf.find(handle.keys)) if place is None]

    async def fetch(self, handle: Handle, number: int, first_layer: int) -> list[memoryview[int]]:
        """Return the payloads of a chunk from the fastest tier that has it sound; ChunkError when none has."""
        link, header, tokens = handle.links[number], handle.header(number), handle.tokens(number)
        async for place, stored in self.shelf.copies(link.key):
            try:
                layers = await self._run(partial(container.opened, stored, header, tokens, link.secrets))
            except ChunkError:
                await self.shelf.spoiled(place, link.key)
                continue
            self.shelf.counts[f"hits.{place}"] += 1
            if place != "memory":
                await self.shelf.put_back(link.key, stored)
            return layers[first_layer:]
        self.shelf.counts["misses"] += 1
        raise ChunkError(f"no tier has chunk {number} sound")

    async def save(self, handle: Handle, number: int, layers: Sequence[Octets]) -> None:
        """Seal and store a chunk, unless it is stored; TierError when nothing that lasts takes it."""
        link = handle.links[number]
        if await self.shelf.is_durable(link.key):
            return
        header, tokens = handle.header(number), handle.tokens(number)
        stored = await self._run(lambda: container.write(header, tokens, layers, link.secrets))
        await self.shelf.save(link.key, stored)
        self.shelf.counts["saved"] += 1

    async def _run(self, act: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.beside, act)
