"""What is known of one session: which chunks it is made of, when it was used, and who may move it on. Pure.

A manifest is compare-and-set: a writer shows the version it read and the fencing token of its lease, so a worker that
was paused longer than its lease lasts cannot move a session back. Chunks are immutable and named by their content, so
readers need neither: whoever may name a chunk may read it. A tombstone takes an erased session's place for as long as
a late write might come.

Refuses to know tiers, clocks and KV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from sessioncache.problems import ChunkError

MOST_MANIFEST_BYTES = 1 << 20
MOST_LEFT = 4096


@dataclass(frozen=True, slots=True)
class Manifest:
    """A session as its last writer left it. `fence` is the highest fencing token that has written.

    left     chunks that were the session's once and are still to be swept; in a tombstone, all that are to be deleted
    summary  what the writer tells of the session to whoever asks; an object of JSON
    """

    session: str
    model: str
    version: int = 0
    fence: int = 0
    chunks: tuple[str, ...] = ()
    tokens: int = 0
    created_s: float = 0.0
    used_s: float = 0.0
    erased_s: float | None = None
    left: tuple[str, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_erased(self) -> bool:
        """Whether this is a tombstone."""
        return self.erased_s is not None

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left of it but its tombstone."""
        return self.is_erased and not self.left


@dataclass(frozen=True, slots=True)
class Lease:
    """Who may move a session on until `until_s`, unless it is renewed; `fence` grows with each new holder."""

    holder: str
    fence: int
    until_s: float


def leased(held: Lease | None, holder: str, now_s: float, length_s: float) -> Lease | None:
    """Give, or renew, a lease; None while another holds it."""
    if held is None or held.until_s <= now_s:
        return Lease(holder, (held.fence if held else 0) + 1, now_s + length_s)
    return replace(held, until_s=now_s + length_s) if held.holder == holder else None


def moved_on(
    now: Manifest, seen: Manifest, chunks: Sequence[str], tokens: int, *, fence: int, used_s: float
) -> Manifest | None:
    """Return the manifest with a session's chunks as of now, or None when the writer's view of it is too old.

    `seen` is what the writer had read. Chunks may be fewer or others than before: conversations are edited, too.
    """
    if now.is_erased or now.version != seen.version or fence < now.fence:
        return None
    left = tuple(sorted({*now.chunks, *now.left} - set(chunks)))[:MOST_LEFT]
    used_s = max(used_s, now.used_s)
    return replace(
        now, version=now.version + 1, fence=fence, chunks=tuple(chunks), tokens=tokens, used_s=used_s, left=left
    )


def touched(now: Manifest, used_s: float) -> Manifest:
    """Note that a session was used; clocks that jump back change nothing."""
    return now if now.is_erased or used_s <= now.used_s else replace(now, version=now.version + 1, used_s=used_s)


def erased(now: Manifest, erased_s: float) -> Manifest:
    """Return the tombstone of a session, which says what is to be deleted."""
    left = tuple(sorted({*now.chunks, *now.left}))
    return replace(now, version=now.version + 1, chunks=(), tokens=0, erased_s=erased_s, left=left, summary={})


def is_cold(manifest: Manifest, now_s: float, cold_after_s: float) -> bool:
    """Whether a session has been idle for so long that its place is the object store."""
    return not manifest.is_erased and now_s - manifest.used_s >= cold_after_s


def written(manifest: Manifest) -> bytes:
    """Return a manifest as it is stored."""
    return orjson.dumps(asdict(manifest))


def read(stored: bytes) -> Manifest:
    """Read a stored manifest; ChunkError when it is none."""
    if len(stored) > MOST_MANIFEST_BYTES:
        raise ChunkError(f"a manifest of {len(stored)} bytes is more than any of ours")
    try:
        told: Any = orjson.loads(stored)
        manifest = Manifest(**{**told, "chunks": tuple(told["chunks"]), "left": tuple(told["left"])})
    except (ValueError, TypeError, KeyError) as exc:
        raise ChunkError("the manifest does not have the expected form") from exc
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    texts = (manifest.session, manifest.model, *manifest.chunks, *manifest.left)
    counts = (manifest.version, manifest.fence, manifest.tokens)
    times = [manifest.created_s, manifest.used_s, *([] if manifest.erased_s is None else [manifest.erased_s])]
    sound = (
        all(isinstance(each, str) for each in texts)
        and all(type(each) is int and each >= 0 for each in counts)
        and all(type(each) in {int, float} for each in times)
        and isinstance(manifest.summary, dict)
    )
    if not sound:
        raise ChunkError("the manifest does not have the expected types")
