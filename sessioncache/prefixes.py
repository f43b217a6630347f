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
        link = handle.links[number]
        async for place, stored in self.shelf.copies(link.key):
            try:
                layers = await self._run(partial(_opened, handle, number, stored, first_layer))
            except ChunkError:
                await self.shelf.spoiled(place, link.key)
                continue
            self.shelf.counts[f"hits.{place}"] += 1
            if place != "memory":
                await self.shelf.put_back(link.key, stored)
            return layers
        self.shelf.counts["misses"] += 1
        raise ChunkError(f"no tier has chunk {number} sound")

    async def save(self, handle: Handle, number: int, layers: Sequence[Octets]) -> None:
        """Seal and store a chunk, unless it is stored; TierError when nothing that lasts takes it."""
        link, prefix = handle.links[number], handle.prefix
        if await self.shelf.is_durable(link.key):
            return
        header = container.Header(link.name, prefix.model, prefix.codec, number * CHUNK_TOKENS, CHUNK_TOKENS, ())
        stored = await self._run(lambda: container.write(header, handle.tokens(number), layers, link.secrets))
        await self.shelf.save(link.key, stored)
        self.shelf.counts["saved"] += 1

    async def _run(self, act: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.beside, act)


def _opened(handle: Handle, number: int, stored: bytes, first_layer: int) -> list[memoryview[int]]:
    """Open a chunk's layers; ChunkError when it is not exactly the chunk of this prefix at this place."""
    link, prefix = handle.links[number], handle.prefix
    chunk = container.read(stored, total=len(stored))
    told = (chunk.header.name, chunk.header.model, chunk.header.codec, chunk.header.first, chunk.header.tokens)
    if told != (link.name, prefix.model, prefix.codec, number * CHUNK_TOKENS, CHUNK_TOKENS):
        raise ChunkError(f"{link.name} is another chunk than it should be")
    frames = chunk.frames(stored)
    chunk.check_tokens(frames[0], handle.tokens(number), link.secrets)
    return [chunk.open(frame, frames[frame], link.secrets) for frame in range(first_layer + 1, len(frames))]
