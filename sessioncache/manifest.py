"""What is known of one session: which chunks it is made of, when it was used, and who may move it on. Pure.

A manifest is compare-and-set, and a writer says when it looked: a worker that was paused cannot move a session back.
Nobody waits for anybody. Chunks are immutable and named by their content, so readers need no manifest: whoever may name
a chunk may read it. A tombstone takes an erased session's place for as long as a late write might come.

Refuses to know tiers, clocks and KV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import orjson

from sessioncache.problems import ChunkError

MOST_MANIFEST_BYTES = 1 << 20
MOST_LEFT = 4096


@dataclass(frozen=True, slots=True)
class Manifest:
    """A session as its last writer left it.

    left     chunks that were the session's once and are still to be swept; in a tombstone, all that are to be deleted
    summary  what the writer tells of the session to whoever asks; an object of JSON
    """

    session: str
    model: str
    version: int = 0
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


def moved_on(now: Manifest, chunks: Sequence[str], tokens: int, *, seen_s: float, used_s: float) -> Manifest | None:
    """Return the manifest with a session's chunks as of now, or None for one that was erased.

    A writer that looked its prefix up at `seen_s`, before another wrote, is late: it was paused, or both answered the
    same session. It moves the session nowhere, but what it has saved is the session's to sweep and to erase. Chunks
    may be fewer or others than before: conversations are edited, too.
    """
    if now.is_erased:
        return None
    is_late = seen_s < now.used_s <= used_s  # one from the future was written by a clock that was wrong: no reason
    kept = now.chunks if is_late else tuple(chunks)
    left = tuple(sorted({*now.chunks, *now.left, *chunks} - set(kept)))[:MOST_LEFT]
    if is_late:
        return replace(now, version=now.version + 1, left=left)
    used_s = max(used_s, now.used_s)
    return replace(now, version=now.version + 1, chunks=kept, tokens=tokens, used_s=used_s, left=left)


def erased(now: Manifest, erased_s: float) -> Manifest:
    """Return the tombstone of a session, which says what is to be deleted."""
    left = tuple(sorted({*now.chunks, *now.left}))
    return replace(now, version=now.version + 1, chunks=(), tokens=0, erased_s=erased_s, left=left, summary={})


def written(manifest: Manifest) -> bytes:
    """Return a manifest as it is stored."""
    return orjson.dumps(manifest)


def read(stored: bytes) -> Manifest:
    """Read a stored manifest; ChunkError when it is none."""
    if len(stored) > MOST_MANIFEST_BYTES:
        raise ChunkError(f"a manifest of {len(stored)} bytes is more than any of ours")
    try:
        told: Any = orjson.loads(stored)
        known = {each.name: told[each.name] for each in fields(Manifest) if each.name in told}
        manifest = Manifest(**{**known, "chunks": tuple(told["chunks"]), "left": tuple(told["left"])})
    except (ValueError, TypeError, KeyError) as exc:
        raise ChunkError("the manifest does not have the expected form") from exc
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    texts = (manifest.session, manifest.model, *manifest.chunks, *manifest.left)
    counts = (manifest.version, manifest.tokens)
    times = [manifest.created_s, manifest.used_s, *([] if manifest.erased_s is None else [manifest.erased_s])]
    sound = (
        all(isinstance(each, str) for each in texts)
        and all(type(each) is int and each >= 0 for each in counts)
        and all(type(each) in {int, float} for each in times)
        and isinstance(manifest.summary, dict)
    )
    if not sound:
        raise ChunkError("the manifest does not have the expected types")
