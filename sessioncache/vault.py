"""Tenants' secrets: random, wrapped by a master key, and all that protects what a tenant has stored.

A tenant's one secret is wrapped by AES-256-GCM (NIST SP 800-38D) with the tenant's name as associated data, so a
wrapped secret moved to another tenant does not open. What is derived from it (HKDF, RFC 5869) names its chunks and
sessions and seals its frames. Deleting the wrapped secret erases the tenant, wherever copies of its chunks may lie.

Refuses to know where wrapped secrets are kept and what is sealed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sessioncache.problems import ChunkError, VaultError
from sessioncache.wire import Octets

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
SEALED_EXTRA_BYTES = NONCE_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Secrets:
    """What one tenant's secret becomes: `naming` for chunks, `sessions` for session names, and a seal for bytes."""

    naming: bytes = field(repr=False)
    sessions: bytes = field(repr=False)
    _seal: AESGCM = field(repr=False)

    def seal(self, plain: bytes, bound: bytes) -> bytes:
        """Return nonce | ciphertext | tag; `bound` is not stored, but only the same bytes open it again.

        The nonce is random each time, for two workers may store different bits for equal tokens.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._seal.encrypt(nonce, plain, bound)

    def open(self, sealed: Octets, bound: bytes) -> bytes:
        """Return what was sealed; ChunkError when a single bit of it, of the key or of `bound` differs."""
        if len(sealed) < SEALED_EXTRA_BYTES:
            raise ChunkError(f"{len(sealed)} bytes are too few to be sealed")
        try:
            whole = memoryview(sealed)
            return self._seal.decrypt(whole[:NONCE_BYTES], whole[NONCE_BYTES:], bound)
        except InvalidTag:
            raise ChunkError("a frame does not open: it was altered, or belongs to another tenant or header") from None


@dataclass(frozen=True, slots=True)
class Master:
    """The master keys by id; `current` wraps, all of them unwrap, so that a key can be replaced without a stop."""

    keys: Mapping[str, bytes] = field(repr=False)
    current: str

    def __post_init__(self) -> None:
        """Refuse keys that are none."""
        if self.current not in self.keys:
            raise VaultError(f"the master key {self.current!r} is not among the keys given")
        for key_id, key in self.keys.items():
            if len(key) != KEY_BYTES:
                raise VaultError(f"the master key {key_id!r} has {len(key)} bytes; it must have {KEY_BYTES}")

    def create(self, tenant: str) -> bytes:
        """Make a secret for a tenant; return it wrapped, to be kept."""
        return self._wrap(tenant, os.urandom(KEY_BYTES))

    def rewrap(self, tenant: str, wrapped: Octets) -> bytes:
        """Wrap a tenant's secret with the current key; what it protects stays as it is."""
        return self._wrap(tenant, self._unwrap(tenant, wrapped))

    def secrets(self, tenant: str, wrapped: Octets) -> Secrets:
        """Open a tenant's wrapped secret; VaultError when it is not this tenant's or its master key is not here."""
        secret = self._unwrap(tenant, wrapped)
        return Secrets(_derived(secret, b"naming"), _derived(secret, b"sessions"), AESGCM(_derived(secret, b"seal")))

    def _wrap(self, tenant: str, secret: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        sealed = AESGCM(self.keys[self.current]).encrypt(nonce, secret, _bound(tenant, self.current))
        return orjson.dumps({"key_id": self.current, "nonce": nonce.hex(), "sealed": sealed.hex()})

    def _unwrap(self, tenant: str, wrapped: Octets) -> bytes:
        key_id, nonce, sealed = _parsed(wrapped)
        if key_id not in self.keys:
            raise VaultError(f"the tenant {tenant!r} needs the master key {key_id!r}, which was not given")
        try:
            return AESGCM(self.keys[key_id]).decrypt(nonce, sealed, _bound(tenant, key_id))
        except InvalidTag:
            raise VaultError(f"the master key {key_id!r} does not open the secret of the tenant {tenant!r}") from None


def _derived(secret: bytes, use: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"tidegate." + use).derive(secret)


def _bound(tenant: str, key_id: str) -> bytes:
    return orjson.dumps(["tidegate.tenant.1", tenant, key_id])


def _parsed(wrapped: Octets) -> tuple[str, bytes, bytes]:
    try:
        kept: Any = orjson.loads(wrapped)
        key_id, nonce, sealed = kept["key_id"], bytes.fromhex(kept["nonce"]), bytes.fromhex(kept["sealed"])
    except (ValueError, KeyError, TypeError) as exc:
        raise VaultError("a wrapped secret is not readable") from exc
    if not isinstance(key_id, str) or len(nonce) != NONCE_BYTES:
        raise VaultError("a wrapped secret is not readable")
    return key_id, nonce, sealed
