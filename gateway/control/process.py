"""One process of ours, a worker or the session store: start it, hear what it says, end it.

Refuses to know when that should happen.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path

import orjson

import backends.local
from sessioncache.masterkeys import KEY_VARIABLE

TERM_PATIENCE_S = 5.0
LINE_LIMIT_BYTES = 64 << 10
PATH_LIMIT_BYTES = 107  # of a unix socket's address on Linux


def listen(path: Path) -> socket.socket:
    """Bind a worker's socket in a private folder; a socket that a killed gateway left behind is replaced."""
    if len(os.fsencode(path)) > PATH_LIMIT_BYTES:
        raise OSError(f"{path} is too long for a unix socket; set [server] run_dir to a shorter path")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    if path.exists():
        _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(f"{path} is in use by another gateway; stop that one or set another [server] run_dir")


async def spawn(listener: socket.socket, settings: Mapping[str, object], *, module: str = "backends.worker") -> Process:
    """Start a process on `listener`. Its standard input stays open: when we die it reads the end of it, and dies too.

    A session of its own keeps a terminal's Ctrl-C, which is ours to answer, away from it.
    """
    ours = str(Path(backends.local.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "--fd", str(listener.fileno())),
        stdin=PIPE,
        stdout=DEVNULL,
        stderr=PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,
        # OpenMP threads that spin while they wait starve each other on cores that others use too.
        env={"OMP_WAIT_POLICY": "passive", **_blas_threads(settings), **_ours_for(module), "PYTHONPATH": paths},
    )
    if process.stdin is not None:
        process.stdin.write(orjson.dumps(dict(settings)) + b"\n")
    return process


def _ours_for(module: str) -> dict[str, str]:
    """Return our environment; what opens the store is the store's alone."""
    is_store = module.startswith("sessioncache.")
    return {name: value for name, value in os.environ.items() if is_store or name != KEY_VARIABLE}


def _blas_threads(settings: Mapping[str, object]) -> dict[str, str]:
    """Hold numpy, which an encoder computes with, to the threads of the settings; it reads them as it is imported."""
    return {"OPENBLAS_NUM_THREADS": str(settings["threads"])} if settings.get("threads") else {}


async def stop(process: Process, *, patience_s: float = TERM_PATIENCE_S) -> None:
    """End a process and wait until it is gone: SIGTERM, and SIGKILL when that does not help."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(patience_s):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
    await process.wait()
    if process.stdin is not None:
        process.stdin.close()


def why(returncode: int | None) -> str:
    """Say how a process ended."""
    if returncode is None:
        return "it was ended"
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exited with {returncode}"


async def said(process: Process, *, name: str = "worker") -> AsyncIterator[tuple[str, dict[str, object]]]:
    """Yield what a process writes to standard error: its JSON lines as events, anything else as it is."""
    if process.stderr is None:
        return
    pending = b""
    while received := await process.stderr.read(LINE_LIMIT_BYTES):
        *lines, pending = (pending + received).split(b"\n")
        if len(pending) > LINE_LIMIT_BYTES:
            lines, pending = [*lines, pending], b""
        for line in lines:
            yield _event(line, name)
    if pending:
        yield _event(pending, name)


def _event(line: bytes, name: str) -> tuple[str, dict[str, object]]:
    with suppress(orjson.JSONDecodeError):
        fields = orjson.loads(line)
        if isinstance(fields, dict) and isinstance(event := fields.pop("event", None), str):
            return event, fields
    return f"{name}.stderr", {"line": line.decode(errors="replace")}
