"""The clients of clients.toml, the faults they meet, and running them: each in a process of its own, all at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.clients.reports import PATIENCE_S, Report, Task

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
INSTALLED = ROOT / "build/clients"


@dataclass(frozen=True, slots=True)
class Client:
    """One row of the matrix: `module` drives it, `cut` is its word for an answer that max_tokens ended.

    `faults` says what users of it get to see: what is raised, and after how many retries.
    """

    module: str
    title: str
    package: str
    language: Literal["python", "javascript"]
    cut: str
    features: tuple[str, ...]
    faults: dict[str, str]


@dataclass(frozen=True, slots=True)
class Fault:
    """A state of the gateway: below `path` of the relay, for `prompt` to the echo model, to a client with a timeout."""

    path: str
    prompt: str = "one two three four five six seven"
    timeout_s: float = 60
    patience_s: float = PATIENCE_S


FAULTS = {
    "wrong key": Fault("401"),
    "rejected": Fault("none-400", "echo:rejected"),
    "rate limit": Fault("429"),
    "overload": Fault("none-503", "echo:overloaded"),
    "stall": Fault("none-stall", "echo:stall=2 one two three", timeout_s=3, patience_s=9),
    "cut": Fault("cut", "echo:repeat=500 one two"),
    "error event": Fault("none-error", "echo:error=2 one two three"),
}


def clients() -> tuple[Client, ...]:
    """Read the matrix."""
    rows = tomllib.loads((HERE / "clients.toml").read_text())
    return tuple(Client(module=module, **row | {"features": tuple(row["features"])}) for module, row in rows.items())


def node() -> Path:
    """Give the Node.js that comes with the packages, or the machine's own where npm has none for it."""
    found = next(INSTALLED.glob("node_modules/node-*/bin/node"), None) or shutil.which("node")
    assert found, "Node.js 24 is missing"
    return Path(found)


def install() -> None:
    """Bring the packages of package-lock.json into build/clients, and beside them the scripts that use them."""
    if shutil.which("npm") is None:
        reason = "npm is missing: install Node.js 20 or newer with npm to try the JavaScript clients"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    INSTALLED.mkdir(parents=True, exist_ok=True)
    lock, installed = HERE / "package-lock.json", INSTALLED / "installed.json"
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, INSTALLED)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=INSTALLED, check=True)
        shutil.copy(lock, installed)
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, INSTALLED)


def reports(work: Sequence[tuple[Client, dict[str, Task]]]) -> dict[tuple[str, str], Report]:
    """Have every client do its tasks, by feature, all clients at once; gives what each told."""
    with ThreadPoolExecutor(len(work)) as pool:
        told = pool.map(lambda each: run(*each), work)
    return {
        (client.module, label): report
        for (client, tasks), lines in zip(work, told, strict=True)
        for label, report in zip(tasks, lines, strict=True)
    }


def run(client: Client, tasks: dict[str, Task]) -> list[Report]:
    """Run one client's process."""
    features = [label if label in client.features else "stream" for label in tasks]
    wanted = [{"feature": feature, **asdict(task)} for feature, task in zip(features, tasks.values(), strict=True)]
    command, folder = [sys.executable, "-m", "tests.clients.run"], ROOT
    if client.language == "javascript":
        command, folder = [str(node()), "run.mjs"], INSTALLED
    process = subprocess.run(
        [*command, client.module], cwd=folder, input=json.dumps(wanted), capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]


def outcome(report: Report, tries: int) -> str:
    """Say in a few words what a client's user sees of a fault."""
    retries = {1: "", 2: ", 1 retry"}.get(tries, f", {tries - 1} retries")
    if report.get("waits"):
        return f"waits{retries}"
    if error := report.get("error"):
        return f"`{error['type']}`{retries}"
    return f"ends like a whole answer: {report['text']}"
