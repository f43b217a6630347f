"""What a program takes: memory at its peak, bytes of its installation, and the worker's start as a gateway sees it."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from importlib import metadata
from pathlib import Path

import aiohttp
from served import ready, serve
from table import Row


def peak_bytes(pid: int) -> int:
    """Return the most memory that a running process has had resident."""
    return _status(pid, "VmHWM") << 10


def install_bytes(*names: str) -> int:
    """Add up the installed files of packages and of everything they require without extras."""
    wanted, known, total = list(names), set[str](), 0
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in known:
            continue
        known.add(name)
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # required on other platforms only
        total += sum(file.size or 0 for file in package.files or ())
        requirements = [each for each in package.requires or () if "extra ==" not in each]
        wanted += [re.split(r"[^\w.-]", each)[0] for each in requirements]
    return total


def worker_start(repeats: int) -> list[Row]:
    """Time `tidegate serve` until a worker is ready, and weigh that worker before its first call."""
    starts, weights = zip(*(asyncio.run(_start()) for _ in range(repeats)), strict=True)
    return [
        Row("tidegate serve to a ready worker", "s", starts, less_is_better=True),
        Row("a worker's memory when ready", "MiB", weights, less_is_better=True),
    ]


async def _start() -> tuple[float, float]:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        async with serve(Path(folder)) as served, aiohttp.ClientSession() as http:
            await ready(http, served.base)
            took = time.perf_counter() - began
            return took, max(_status(child, "VmRSS") for child in children(served.pid)) / 2**10


def children(pid: int) -> list[int]:
    """List the processes that a process has started and not outlived."""
    folders = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for folder in folders for child in (folder / "children").read_text().split()]


def _status(pid: int, field: str) -> int:
    """Read a field in KiB of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
