"""What a chunk of KV is called: a hash chain over the tokens, under a secret of whose they are and what computed them.

Equal names mean equal KV. Names of different scopes never meet, whatever the tokens, so no tenant finds another's
prefix and no hit's timing tells of one; nobody can guess a name without the secret, so probing an object store for it
is of no use either. A model's weights, quantisation and codec are part of the scope: new weights miss, never mix.

Refuses to know sessions, tiers and KV values.
"""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_TOKENS = 256
NAME_DIGITS = 48  # 192 bits: no two prefixes ever share a name by accident


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose prefixes are one: all callers that hold `secret` (32 bytes), on equal weights and an equal codec.

    model  fingerprint of what computes the KV: file digests, quantisation, rope, KV layout
    codec  profile of the stored form, its version included
    """

    secret: bytes
    model: str
    codec: str

    @property
    def root(self) -> bytes:
        """The chain's state before the first token."""
        parts = [each.encode() for each in ("tidegate.kv.1", self.model, self.codec)]
        message = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        return hmac.digest(self.secret, message, "sha256")


def names(tokens: Sequence[int], scope: Scope, *, common: Scope | None = None, common_tokens: int = 0) -> list[str]:
    """Name each whole chunk of `tokens`, in order.

    The first `common_tokens` are a prompt that the operator declared common: their whole chunks are named in the scope
    `common`, which all tenants share; everything after them belongs to `scope` alone.
    """
    shared = common_tokens // CHUNK_TOKENS if common is not None else 0
    state = common.root if common is not None and shared else scope.root
    found: list[str] = []
    for number in range(len(tokens) // CHUNK_TOKENS):
        if shared and number == shared:
            state = hmac.digest(scope.root, state, "sha256")
        chunk = tokens[number * CHUNK_TOKENS : (number + 1) * CHUNK_TOKENS]
        state = hashlib.sha256(state + token_bytes(chunk)).digest()
        found.append(state.hex()[:NAME_DIGITS])
    return found


def session_name(secret: bytes, given: str) -> str:
    """Name a session by what its client calls it; the client's own words are stored nowhere."""
    return hmac.new(secret, b"tidegate.session.1\0" + given.encode(errors="surrogatepass"), "sha256").hexdigest()[:32]


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Write token ids as little-endian 32-bit words; OverflowError for an id that is none."""
    words = array("I", tokens)
    if words.itemsize != 4:  # pragma: no cover - no platform that we know
        raise OverflowError("this platform's unsigned int has not 32 bits")
    return words.tobytes()
