"""Whose secrets are whose: one wrapped secret a tenant in the cold tier, made by whoever comes first.

Secrets opened here are believed for a minute, so that a tenant erased through one store is erased at all of them.
Deleting the wrapped secret makes everything of the tenant unreadable, wherever copies of it lie.

Refuses to know chunks and sessions.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from sessioncache.masterkeys import HOW_TO_MAKE, KEY_VARIABLE, read_keys, read_variable
from sessioncache.problems import TierError, VaultError
from sessioncache.settings import StoreSettings
from sessioncache.several import each_of
from sessioncache.tiers import ColdTier
from sessioncache.vault import KEY_BYTES, Master, Secrets

BELIEVED_S = 60.0
OPERATOR = "\0operator"  # whose secret names the chunks of prompts that all tenants share; no tenant has this name
KEY_NAME = "master.key"
KEY_COMMAND_S = 30.0


def place_of(tenant: str) -> str:
    """Return the part of a key that stands for a tenant."""
    return sha256(tenant.encode(errors="surrogatepass")).hexdigest()[:32]


@dataclass(slots=True)
class Tenants:
    """The tenants' secrets. `now` never jumps."""

    master: Master
    cold: ColdTier
    now: Callable[[], float]
    _known: dict[str, tuple[Secrets, float]] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def secrets(self, tenant: str) -> Secrets:
        """Return a tenant's secrets, made now if it has none; TierError, or VaultError for a wrong master key."""
        known = self._known.get(tenant)
        if known is not None and self.now() - known[1] < BELIEVED_S:
            return known[0]
        async with self._opening:
            known = self._known.get(tenant)
            if known is None or self.now() - known[1] >= BELIEVED_S:
                known = self._known[tenant] = await self._open(tenant, known), self.now()
        return known[0]

    async def names(self) -> list[str]:
        """List the tenants that have a secret, the operator's among them."""
        kept = await each_of(self.cold.get, [entry.key async for entry in self.cold.entries("keys/")])
        return sorted(_record(each)[0] for each in kept if each is not None)

    async def erase(self, tenant: str) -> None:
        """Delete a tenant's secret, and look that it is gone."""
        self._known.pop(tenant, None)
        await self.cold.delete(key := _key(tenant))
        if await self.cold.size(key) is not None:
            raise TierError(f"the secret of {tenant!r} is still there after it was deleted")

    async def rewrap(self) -> int:
        """Wrap every secret with the current master key; return how many were wrapped by another."""
        changed = 0
        async for entry in self.cold.entries("keys/"):
            if (kept := await self.cold.tagged(entry.key)) is not None:
                tenant, wrapped = _record(kept[0])
                if orjson.loads(wrapped)["key_id"] != self.master.current:
                    changed += await self.cold.swap(
                        entry.key, _written(tenant, self.master.rewrap(tenant, wrapped)), kept[1]
                    )
        return changed

    async def _open(self, tenant: str, known: tuple[Secrets, float] | None) -> Secrets:
        try:
            kept = await self.cold.get(_key(tenant))
            if kept is None:
                await self.cold.swap(_key(tenant), _written(tenant, self.master.create(tenant)), None)
                kept = await self.cold.get(_key(tenant))
        except TierError:
            if known is None:
                raise
            return known[0]  # a cold tier that is away makes nobody's secret wrong
        if kept is None:
            raise TierError(f"the secret of {tenant!r} was deleted while it was made")
        return self.master.secrets(tenant, _record(kept)[1])


def master_of(settings: StoreSettings, environment: Mapping[str, str] = os.environ) -> Master:
    """Find the master keys, or make one where nothing leaves this machine; VaultError says what to do."""
    if settings.key_command is not None:
        return _parsed(_told_by(settings.key_command), "what key_command prints")
    if settings.key_file is not None:
        return _parsed(_file(Path(settings.key_file)), f"key_file {settings.key_file}")
    if given := environment.get(KEY_VARIABLE, ""):
        return _parsed(given, KEY_VARIABLE, read_variable)
    if settings.is_shared:
        raise VaultError(
            f"Redis or S3 is configured without a master key; set {KEY_VARIABLE}, encryption_key_file "
            f"or encryption_key_command (make a key with: {HOW_TO_MAKE})"
        )
    return _parsed(_own_key(Path(settings.state_dir) / KEY_NAME), KEY_NAME)


def _own_key(path: Path) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _file(path)
    with os.fdopen(handle, "w") as out:
        out.write(made := f"own:{os.urandom(KEY_BYTES).hex()}\n")
        out.flush()
        os.fsync(out.fileno())
    return made


def _told_by(command: str) -> str:
    """Run a command and return what it prints; what it says on standard error stays in our log."""
    try:
        asked = shlex.split(command)
        done = subprocess.run(  # noqa: S603 - the operator's own command, and no shell
            asked, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=KEY_COMMAND_S, check=True, text=True
        )
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        raise VaultError(f"key_command {command.split()[:1]} gave no key: {type(exc).__name__}") from exc
    return done.stdout


def _file(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise VaultError(f"the master key file {path} cannot be read: {exc}") from exc


def _parsed(text: str, where: str, read: Callable[[str], dict[str, bytes]] = read_keys) -> Master:
    try:
        keys = read(text)
    except ValueError as exc:
        raise VaultError(f"{where}: {exc}") from exc
    return Master(keys, current=next(iter(keys)))


def _key(tenant: str) -> str:
    return f"keys/{place_of(tenant)}"


def _written(tenant: str, wrapped: bytes) -> bytes:
    return orjson.dumps({"tenant": tenant, "wrapped": wrapped.decode()})


def _record(kept: bytes) -> tuple[str, bytes]:
    try:
        told: Any = orjson.loads(kept)
        return str(told["tenant"]), str(told["wrapped"]).encode()
    except (ValueError, KeyError, TypeError) as exc:
        raise VaultError("a tenant's record is not readable") from exc
