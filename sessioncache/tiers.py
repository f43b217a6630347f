"""Where stored bytes lie: what a tier promises, one in memory and one in a folder.

Refuses to know what the bytes mean, whose they are and when they move.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Protocol, TypeVar
from zlib import crc32

from sessioncache.problems import TierError

Result = TypeVar("Result")
_PARTS, _LOCKS = ".parts", ".locks"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that a tier holds: its key, its size, and when it was written (seconds since 1970)."""

    key: str
    bytes: int
    written_s: float


class Tier(Protocol):
    """A place for bytes under keys of letters, digits, "-", "." and "/". Raises TierError and nothing else.

    What was put is there whole or not at all, whatever dies in between; putting it again is fine.
    """

    async def put(self, key: str, stored: bytes) -> None:
        """Store bytes; when this returns they survive what the tier survives."""
        ...

    async def get(self, key: str, first: int = 0, end: int | None = None) -> bytes | None:
        """Return bytes [first, end), fewer where they end earlier; None when the key is not there."""
        ...

    async def size(self, key: str) -> int | None:
        """Return how many bytes are stored under a key; None when it is not there."""
        ...

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return what `size` does for each of several keys, in little more than the time of one."""
        ...

    async def delete(self, key: str) -> None:
        """Forget a key; one that is not there is fine."""
        ...

    def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """List what is stored under keys that begin so, in no particular order."""
        ...


class ColdTier(Tier, Protocol):
    """A tier that can also compare and set: what two writers change, one of them changes first."""

    async def tagged(self, key: str) -> tuple[bytes, str] | None:
        """Return what is stored, with a tag that names this state of it."""
        ...

    async def swap(self, key: str, stored: bytes, tag: str | None) -> bool:
        """Store bytes if the key still is as `tag` says (None: not there); return whether it was."""
        ...


@dataclass(slots=True)
class MemoryTier:
    """This process's memory, within `most_bytes`: what was used longest ago is dropped for what comes."""

    most_bytes: int
    clock: Callable[[], float]
    dropped: int = 0
    held_bytes: int = 0
    _stored: OrderedDict[str, tuple[bytes, float]] = field(default_factory=OrderedDict)

    @property
    def count(self) -> int:
        """How many keys are held."""
        return len(self._stored)

    def pushed_out_by(self, size: int) -> list[str]:
        """Return what is dropped when so many bytes come."""
        excess, found = self.held_bytes + size - self.most_bytes, []
        for key, (stored, _) in self._stored.items():
            if excess <= 0 or size > self.most_bytes:
                break
            found.append(key)
            excess -= len(stored)
        return found

    async def put(self, key: str, stored: bytes) -> None:
        """See `Tier`; what alone is larger than the bound is refused."""
        if len(stored) > self.most_bytes:
            raise TierError(f"{len(stored)} bytes are more than the {self.most_bytes} that memory may hold")
        await self.delete(key)
        while self.held_bytes + len(stored) > self.most_bytes:
            _, (oldest, _) = self._stored.popitem(last=False)
            self.held_bytes -= len(oldest)
            self.dropped += 1
        self._stored[key] = stored, self.clock()
        self.held_bytes += len(stored)

    async def get(self, key: str, first: int = 0, end: int | None = None) -> bytes | None:
        """See `Tier`."""
        if (found := self._stored.get(key)) is None:
            return None
        self._stored.move_to_end(key)
        return found[0][first:end]

    async def size(self, key: str) -> int | None:
        """See `Tier`."""
        return (await self.sizes([key]))[0]

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """See `Tier`."""
        found = map(self._stored.get, keys)
        return [None if each is None else len(each[0]) for each in found]

    async def delete(self, key: str) -> None:
        """See `Tier`."""
        if (found := self._stored.pop(key, None)) is not None:
            self.held_bytes -= len(found[0])

    async def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """See `Tier`."""
        for key, (stored, written_s) in list(self._stored.items()):
            if key.startswith(prefix):
                yield Entry(key, len(stored), written_s)


@dataclass(frozen=True, slots=True)
class FolderTier:
    """A folder that only this user can enter. Files are written beside their place, synced, and renamed into it."""

    folder: Path

    async def put(self, key: str, stored: bytes) -> None:
        """See `Tier`; survives a crash of the machine."""
        await self._run(lambda: self._write(self._path(key), stored))

    async def get(self, key: str, first: int = 0, end: int | None = None) -> bytes | None:
        """See `Tier`."""
        return await self._run(lambda: _read(self._path(key), first, end))

    async def size(self, key: str) -> int | None:
        """See `Tier`."""
        return (await self.sizes([key]))[0]

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """See `Tier`."""
        return await self._run(lambda: [_size(self._path(key)) for key in keys])

    async def tagged(self, key: str) -> tuple[bytes, str] | None:
        """See `ColdTier`; the tag is a digest of the bytes."""
        stored = await self.get(key)
        return None if stored is None else (stored, _tag(stored))

    async def swap(self, key: str, stored: bytes, tag: str | None) -> bool:
        """See `ColdTier`; processes that share the folder take turns by a lock that dies with its holder."""
        return await self._run(lambda: self._swap(self._path(key), stored, tag))

    async def delete(self, key: str) -> None:
        """See `Tier`."""
        await self._run(lambda: self._path(key).unlink(missing_ok=True))

    async def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """See `Tier`."""
        for entry in await self._run(lambda: list(self._walk())):
            if entry.key.startswith(prefix):
                yield entry

    async def sweep(self) -> None:
        """Delete what writers that died have left half written; only while no other process writes here."""
        await self._run(self._delete_parts)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(not part or part.startswith(".") or not set(part) <= _SAFE for part in parts):
            raise TierError(f"{key!r} is no key")
        return self.folder.joinpath(*parts)

    def _write(self, path: Path, stored: bytes) -> None:
        parts = self.folder / _PARTS
        for folder in (parts, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = parts / token_hex(8)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(stored)
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def _swap(self, path: Path, stored: bytes, tag: str | None) -> bool:
        locks = self.folder / _LOCKS
        locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (locks / f"{crc32(bytes(path)) % 64}").open("w") as lock:
            flock(lock, LOCK_EX)
            now = _read(path, 0, None)
            if (None if now is None else _tag(now)) != tag:
                return False
            self._write(path, stored)
            return True

    def _delete_parts(self) -> None:
        for part in (self.folder / _PARTS).glob("*"):
            part.unlink(missing_ok=True)

    def _walk(self) -> list[Entry]:
        found: list[Entry] = []
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder)
            with suppress(FileNotFoundError):  # deleted meanwhile
                if path.is_file() and inside.parts[0] not in {_PARTS, _LOCKS}:
                    state = path.stat()
                    found.append(Entry(inside.as_posix(), state.st_size, state.st_mtime))
        return found

    async def _run(self, act: Callable[[], Result]) -> Result:
        try:
            return await asyncio.to_thread(act)
        except OSError as exc:
            raise TierError(f"{self.folder}: {exc.strerror or exc}") from exc


_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")


def _read(path: Path, first: int, end: int | None) -> bytes | None:
    try:
        with path.open("rb") as stored:
            stored.seek(first)
            return stored.read() if end is None else stored.read(max(0, end - first))
    except FileNotFoundError:
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _tag(stored: bytes) -> str:
    return sha256(stored).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
