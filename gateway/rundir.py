"""The private folder of one running gateway: worker sockets and the admin token.

Refuses to know what is written into it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

TOKEN_FILE = "admin-token"  # noqa: S105 (the file's name)


class RunDirError(Exception):
    """The folder cannot be used; the message says why and what to do."""


def known_run_dir(setting: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return where a gateway with this setting has its folder, or None for one that no other process can know."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    return Path(setting) if setting else Path(runtime) / "tidegate" if runtime else None


@contextmanager
def open_run_dir(setting: str, environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Give a folder that only this user can enter; a temporary one is gone when the block ends."""
    if (known := known_run_dir(setting, environment)) is not None:
        yield _private(known)
        return
    folder = Path(tempfile.mkdtemp(prefix="tidegate-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def admin_token(run_dir: Path, setting: str) -> Iterator[str]:
    """Give the admin token; a random one stands in the folder for this user alone while the block runs."""
    if setting:
        yield setting
        return
    token, file = secrets.token_urlsafe(32), run_dir / TOKEN_FILE
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(token + "\n")
    try:
        yield token
    finally:
        file.unlink(missing_ok=True)


def _private(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as exc:
        raise RunDirError(f"run_dir {folder} cannot be made: {exc.strerror}; name another under [server]") from exc
    if found.st_uid != os.getuid():
        raise RunDirError(f"run_dir {folder} belongs to another user; name a folder of your own under [server]")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise RunDirError(f"run_dir {folder} can be entered by other users; run: chmod 700 {folder}")
    return folder
