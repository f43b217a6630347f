"""What a session store is told at its start: where its tiers are, how large, and when things move.

Refuses to know gateway.toml; whoever starts a store writes these fields as one JSON line.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from sessioncache.s3 import S3Settings


class SettingsError(Exception):
    """A setting that is none, or cannot be; the message names it and says what to do."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """A store's settings. Times are seconds, sizes bytes.

    store         the cold tier: "file:/folder" or "s3://bucket/prefix?endpoint=http://…&region=…"
    state_dir     a folder of this store's own, for the key that is made when none is given
    redis_url     the warm tier; None = what is saved goes to the cold tier at once
    cold_after_s  how long a session is idle before its place is the cold tier alone
    ttl_s         how long a session is idle before it is deleted
    tombstone_s   how long an erased session's name refuses late writes
    key_file      master keys, one "id:64 hex digits" a line, the current one first; else TIDEGATE_MASTER_KEY
    key_command   a command that prints such lines, run once at the start: a key store's own program; no shell reads it
    """

    store: str
    state_dir: str
    memory_bytes: int = 1 << 30
    redis_url: str | None = None
    cold_after_s: float = 2100.0
    ttl_s: float = 7 * 86400.0
    tombstone_s: float = 7 * 86400.0
    gc_every_s: float = 86400.0
    key_file: str | None = None
    key_command: str | None = None

    @property
    def is_shared(self) -> bool:
        """Whether what is stored leaves this machine, so that a key must be given."""
        return self.redis_url is not None or not self.store.startswith("file:")


def settings_of(line: bytes) -> StoreSettings:
    """Read settings; SettingsError names what is wrong with which."""
    try:
        told: Any = orjson.loads(line)
    except ValueError as exc:
        raise SettingsError("the settings are not one line of JSON") from exc
    known = {each.name for each in fields(StoreSettings)}
    if not isinstance(told, dict):
        raise SettingsError("the settings are not an object of JSON")
    if unknown := sorted(set(told) - known):
        raise SettingsError(f"{unknown} are no settings of a store; there are {sorted(known)}")
    for name in ("store", "state_dir"):
        if not isinstance(told.get(name), str) or not told[name]:
            raise SettingsError(f"{name} must be given, as text")
    for name, value in told.items():
        _check(name, value)
    settings = StoreSettings(**told)
    cold_of(settings.store)
    return settings


def cold_of(store: str) -> str | S3Settings:
    """Return the folder, or the bucket, that a cold tier's address names."""
    address = urlsplit(store)
    if address.scheme == "file" and address.path.startswith("/") and not address.netloc:
        return address.path
    if address.scheme != "s3" or not address.netloc:
        raise SettingsError(f'store is {store!r}; write "file:/folder" or "s3://bucket/prefix?endpoint=http://…"')
    asked = parse_qs(address.query, strict_parsing=bool(address.query))
    if unknown := sorted(set(asked) - {"endpoint", "region"}):
        raise SettingsError(f"store: {unknown} are not known; an S3 address takes endpoint and region")
    prefix = address.path.strip("/")
    return S3Settings(
        address.netloc,
        prefix=f"{prefix}/" if prefix else "",
        endpoint=asked.get("endpoint", [""])[0],
        region=asked.get("region", ["us-east-1"])[0],
        timeout_s=10.0,
    )


def _check(name: str, value: Any) -> None:
    if name in {"store", "state_dir"}:
        return
    if name in {"redis_url", "key_file", "key_command"}:
        if value is not None and not isinstance(value, str):
            raise SettingsError(f"{name} must be text or null, not {value!r}")
    elif type(value) not in {int, float} or value <= 0 or (name == "memory_bytes" and type(value) is not int):
        raise SettingsError(f"{name} must be a positive number, not {value!r}")
