"""Runs session stores as the processes they are, and gives clients of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sessioncache.client import Prefix, StoreClient
from sessioncache.identity import CHUNK_TOKENS
from tests.servers import S3_KEY, S3_SECRET

KEY = "11" * 32
LAYERS = [b"layer 0 " * 100, b"", b"layer 2 " * 9000]
PATIENCE_S = 20


class RunningStore:
    """A store process: its socket, its standard error, and how it ends."""

    def __init__(self, folder: Path, environment: dict[str, str], settings: dict[str, object]) -> None:
        self._sockets = TemporaryDirectory(prefix="tg")  # a unix socket's path has at most 107 bytes
        self.socket = Path(self._sockets.name) / "store.sock"
        self.log = folder / "store.log"
        told = {"store": f"file:{folder}/cold", "state_dir": str(folder / "state"), **settings}
        with socket.socket(socket.AF_UNIX) as listener, self.log.open("ab") as log:
            listener.bind(str(self.socket))
            listener.listen()
            command = [sys.executable, "-m", "sessioncache.store", "--fd", str(listener.fileno())]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=log, pass_fds=[listener.fileno()], env=environment
            )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told).encode() + b"\n")
        self.process.stdin.flush()

    def ended(self, by: signal.Signals = signal.SIGTERM) -> int:
        """End the process and wait for it."""
        self.process.send_signal(by)
        return self.waited()

    def waited(self) -> int:
        """Wait for the process to end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(PATIENCE_S)
        self._sockets.cleanup()
        return code


def folder_in(folder: Path, name: str) -> Path:
    """Make a folder for a store of its own."""
    (made := folder / name).mkdir()
    return made


@contextmanager
def store_running(folder: Path, **settings: object) -> Iterator[RunningStore]:
    """Run a store with its tiers in a folder, or where the settings say."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
    environment |= {"TIDEGATE_MASTER_KEY": KEY, "AWS_CONFIG_FILE": os.devnull}
    environment |= {"AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    store = RunningStore(folder, environment, settings)
    try:
        yield store
    finally:
        if store.process.poll() is None:
            store.ended()


@asynccontextmanager
async def client_of(store: RunningStore) -> AsyncIterator[StoreClient]:
    """Connect to a store."""
    client = await StoreClient.connect(store.socket)
    try:
        yield client
    finally:
        await client.aclose()


def prefix(chunks: int = 2, *, tenant: str = "ada", first: int = 7, common_tokens: int = 0) -> Prefix:
    """Make a prefix of whole chunks and a bit; `first` makes it another from its first token on."""
    tokens = array("I", range(first, first + chunks * CHUNK_TOKENS + 10))
    return Prefix(tenant, "model", "exact-1", tokens, common_tokens)


async def saved(client: StoreClient, of: Prefix, session: str = "s") -> str:
    """Save all chunks of a prefix and note its session; return the session's name."""
    found = await client.lookup(of)
    for chunk in await client.missing(found.handle):
        await client.save(found.handle, chunk, LAYERS)
    name = await client.note(found.handle, session, summary={"turns": 1})
    await client.close(found.handle)
    return name


async def restored(client: StoreClient, of: Prefix) -> list[str]:
    """Fetch all chunks that are found and see that they are right; return the tiers that they were found in."""
    found = await client.lookup(of)
    for chunk in range(len(found.tiers)):
        assert await client.fetch(found.handle, chunk) == LAYERS
    await client.close(found.handle)
    return list(found.tiers)
