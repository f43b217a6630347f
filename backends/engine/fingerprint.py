"""What computes the KV of a token, in one name: equal fingerprints mean KV that one may take for the other's.

Refuses to know codecs and stores. Weights count by their files' contents, never by a name; reading gigabytes at every
start would cost seconds, so a file's digest is kept beside its path, size and time.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson

from backends.engine.quantised import ROUNDED
from backends.engine.weights import Checkpoint
from backends.kernels.cpu import KvFormat

LAYOUT = 1
"""Of K and V in a block and of what a step computes; raised when either changes."""

KEPT = "digests.json"


def fingerprint(checkpoint: Checkpoint, kv_format: KvFormat, folder: Path | None = None) -> str:
    """Return 32 hex digits of the weights' files, the stretch, the cache's format and our rounding.

    `folder` is where files' digests are kept from one start to the next; None reads every file.
    """
    spec = checkpoint.spec
    rope = (spec.rope_theta, spec.rope_scale, checkpoint.stretch)
    total = hashlib.sha256(repr(("native", LAYOUT, kv_format, ROUNDED, rope)).encode())
    for digest in _digests(checkpoint.source.files, folder):
        total.update(bytes.fromhex(digest))
    return total.hexdigest()[:32]


def _digests(files: tuple[Path, ...], folder: Path | None) -> list[str]:
    known = _read(folder)
    keys = {path: _key(path) for path in files}
    found = {key: known.get(key) or _digest(path) for path, key in keys.items()}
    if folder is not None and not found.keys() <= known.keys():
        _write(folder, known | found)
    return [found[key] for key in keys.values()]


def _key(path: Path) -> str:
    """Name this state of a file: whoever changes its contents changes its time or its inode."""
    path = path.resolve()
    found = path.stat()
    return f"{path}|{found.st_ino}|{found.st_size}|{found.st_mtime_ns}|{found.st_ctime_ns}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path | None) -> dict[str, str]:
    """Return what is kept; nothing where it cannot be read, as all of it can be computed again."""
    try:
        kept = orjson.loads((folder / KEPT).read_bytes()) if folder is not None else {}
    except (OSError, orjson.JSONDecodeError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {key: digest for key, digest in kept.items() if isinstance(digest, str) and len(digest) == 64}


def _write(folder: Path, digests: dict[str, str]) -> None:
    """Keep the digests; a folder that cannot be written costs time at the next start and nothing else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{KEPT}.new"
        fresh.write_bytes(orjson.dumps(digests))
        fresh.replace(folder / KEPT)
    except OSError:
        return
