"""Sessions as users and operators meet them: streamed headers, the commands, Redis, a store that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.servers import Server
from tests.serving import PATIENCE_S, SMOLLM2, TIDEGATE, Served, serving
from tests.test_admin import get
from tests.test_sessions_served import token

SYSTEM = "You are a careful clerk. " + " ".join(f"Rule {i}: file paper {i * 7} in box {i * 3}." for i in range(50))
QUICK = 'write_behind = "100ms"\nmin_restore_tokens = 256\n'


def asked(served: Served, text: str, *, system: str = SYSTEM) -> str:
    """Stream an answer with OpenAI's client, to its end; return what the header of its head says."""
    client = OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    with client.chat.completions.with_streaming_response.create(
        model="smollm2", messages=messages, max_tokens=3, stream=True, extra_headers={"x-session-id": "s1"}
    ) as answer:
        assert list(answer.parse())
        return str(answer.headers["x-tidegate-cache"])


def of(served: Served, path: str = "") -> dict[str, Any]:
    """Ask the admin port about sessions."""
    return dict(json.loads(get(served, f"/admin/sessions{path}", **token(served))[1]))


def kept(served: Served) -> str:
    """Wait until a session is listed; return its name."""
    latest = time.monotonic() + PATIENCE_S
    while not (listed := of(served)["sessions"]):
        assert time.monotonic() < latest, "no session was saved"
    return str(listed[0]["session"])


@contextmanager
def clerk(folder: Path, sessions: str = "") -> Iterator[Served]:
    """Serve the model with a worker that is ready."""
    with serving(
        folder, models=SMOLLM2, server='ping_interval = "60s"', rest=f"[sessions]\n{QUICK}{sessions}\n"
    ) as served:
        served.event("worker.ready")
        yield served


def command(served: Served, folder: Path, *words: str | Path) -> str:
    """Run `tidegate sessions …` against a running gateway; return what it prints."""
    config = folder / "asked.toml"
    admin = served.event("listening")["admin"]
    text = (folder / "gateway.toml").read_text()
    config.write_text(text.replace('admin_listen = "127.0.0.1:0"', f'admin_listen = "{admin}"'))
    run = subprocess.run(
        [TIDEGATE, "sessions", *words, "--config", config], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_stream_and_the_command_say_what_became_of_a_prompt(tmp_path: Path) -> None:
    """The head of a stream has the counts; `show` has them turn by turn, and where a changed prompt parts."""
    with clerk(tmp_path) as served:
        first = asked(served, "Where is paper 7?")
        second = asked(served, "Where is paper 14?")
        series = get(served, "/metrics")[1].decode()
        third = asked(served, "Where is paper 14?", system=SYSTEM.replace("Rule 40: file", "Rule 40: burn"))
        shown = json.loads(command(served, tmp_path, "show", kept(served)))

    assert first.startswith("cached=0; computed=")
    assert "diverged" not in first
    assert int(second.split(";")[0].removeprefix("cached=")) > 512
    parted = SYSTEM.index(" file", SYSTEM.index("Rule 40"))  # where the first token that differs begins
    assert third.endswith(f"diverged=message 0, character {parted}")
    turns = shown["turns"]
    assert [turn["diverged"] for turn in turns] == [None, [1, len("Where is paper ")], [0, parted]]
    heads = [each.split(";")[0] for each in (first, second, third)]
    assert [f"cached={turn['cached_tokens']}" for turn in turns] == heads
    assert all(turn["cached_tokens"] + turn["computed_tokens"] == turn["prompt_tokens"] for turn in turns)
    assert {chunk["tier"] for chunk in shown["chunks"]} <= {"memory", "cold"}
    assert "tidegate_store_up 1.0" in series


def test_a_session_that_was_exported_and_erased_comes_back_by_import_alone(tmp_path: Path) -> None:
    """Its next answer cannot bring an erased session back; its file can, and then it is restored."""
    file = tmp_path / "session.tidegate"
    with clerk(tmp_path) as served:
        asked(served, "Where is paper 7?")
        name = kept(served)
        command(served, tmp_path, "export", name, file)
        command(served, tmp_path, "erase", name)
        asked(served, "Where is paper 14?")

    with clerk(tmp_path) as served:
        assert of(served)["sessions"] == []
        erased = asked(served, "Where is paper 21?")
    with clerk(tmp_path) as served:
        imported = command(served, tmp_path, "import", file)
        note = asked(served, "Where is paper 28?")
        swept = command(served, tmp_path, "gc")

    assert erased.startswith("cached=0;")
    assert imported == f"imported {name}\n"
    assert "restored=" in note
    assert "chunks: 0" in swept


def test_redis_has_what_a_restart_of_everything_needs(tmp_path: Path, redis_server: Server) -> None:
    """With a key, and a cold tier that is still empty, the prompt is restored from Redis."""
    (tmp_path / "keys").write_text(f"2026:{'3f' * 32}\n")
    redis = f'redis = "{redis_server.url}"\nencryption_key_file = "{tmp_path}/keys"'
    with clerk(tmp_path, redis) as served:
        asked(served, "Where is paper 7?")

    with clerk(tmp_path, redis) as served:
        note = asked(served, "Where is paper 14?")

    assert "(redis)" in note


def test_a_store_that_is_killed_costs_no_answer(tmp_path: Path) -> None:
    """While it is away prompts are computed; once it is back the next worker's turn is restored."""
    with clerk(tmp_path) as served:
        asked(served, "Where is paper 7?")
        kept(served)
        os.kill(int(str(served.event("store.ready")["pid"])), signal.SIGKILL)
        killed = asked(served, "Where is paper 14?")
        served.event("store.ready", nth=2)
        os.kill(int(str(served.event("worker.ready")["pid"])), signal.SIGKILL)
        served.event("worker.ready", nth=2)
        restored = asked(served, "Where is paper 21?")

    assert "computed=" in killed
    assert "restored=" in restored
