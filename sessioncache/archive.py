"""The records of a session's file: sealed anew under a secret of the file's own, which the master key wraps.

They are the wrapped secret, the sealed head, and the chunks in order.

Only a store that holds the master key opens it, so a file that was lost tells nothing and a file that was made up is
refused. The head holds the token ids, for another tenant's secret names equal chunks otherwise. What is read is
hostile until its seal, its bounds and its tokens were checked.

Refuses to know tiers and sockets.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from sessioncache import container
from sessioncache.identity import CHUNK_TOKENS
from sessioncache.problems import ChunkError
from sessioncache.vault import Master, Secrets
from sessioncache.wire import Octets

BOUND = b"tidegate.archive.1"
OWNER = "\0archive"  # the name that a file's secret is wrapped under; no tenant has it


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of its session. `common` are the first chunks that belong to all tenants."""

    tenant: str
    session: str
    model: str
    codec: str
    tokens: array[int]
    common: int
    summary: dict[str, Any]


def begin(master: Master, head: Head) -> tuple[bytes, bytes]:
    """Return the first two records of a file: its wrapped secret, and the sealed head."""
    wrapped = master.create(OWNER)
    told = {name: getattr(head, name) for name in ("tenant", "session", "model", "codec", "common", "summary")}
    told["tokens"] = head.tokens.tobytes().hex()
    return wrapped, master.secrets(OWNER, wrapped).seal(orjson.dumps(told), BOUND)


def opened(master: Master, wrapped: Octets, sealed: Octets) -> tuple[Head, Secrets]:
    """Read the first two records; VaultError or ChunkError for what is none of ours."""
    secrets = master.secrets(OWNER, wrapped)
    try:
        told: Any = orjson.loads(secrets.open(sealed, BOUND))
        head = Head(**{**told, "tokens": array("I", bytes.fromhex(told["tokens"]))})
    except (ValueError, TypeError, KeyError) as exc:
        raise ChunkError("the head of a session's file does not have the expected form") from exc
    return head, secrets


def written(head: Head, number: int, layers: Sequence[Octets], secrets: Secrets) -> bytes:
    """Seal a chunk for a file."""
    return container.write(_header(head, number), _tokens(head, number), layers, secrets)


def read(head: Head, number: int, stored: Octets, secrets: Secrets) -> list[memoryview[int]]:
    """Open a chunk of a file; ChunkError when it is not the one that belongs there."""
    return container.opened(stored, _header(head, number), _tokens(head, number), secrets)


def _header(head: Head, number: int) -> container.Header:
    return container.Header(f"archive.{number}", head.model, head.codec, number * CHUNK_TOKENS, CHUNK_TOKENS, ())


def _tokens(head: Head, number: int) -> Sequence[int]:
    return head.tokens[number * CHUNK_TOKENS : (number + 1) * CHUNK_TOKENS]
