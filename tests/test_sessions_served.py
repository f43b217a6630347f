"""Sessions through the real server and the vendors' own clients: kept over a restart of everything, erased for good."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.serving import SMOLLM2, TIDEGATE, Served, serving
from tests.test_admin import get

SYSTEM = "You are a careful clerk. " + " ".join(f"Rule {i}: file paper {i * 7} in box {i * 3}." for i in range(90))
TENANTS = "".join(
    f'[[tenants]]\nname = "{name}"\nkeys = ["sha256:{sha256(f"key-{name}".encode()).hexdigest()}"]\n'
    for name in ("ada", "bob")
)
REST = '[sessions]\nwrite_behind = "100ms"\nmin_restore_tokens = 256\n' + TENANTS
Answered = tuple[int, str]


def token(served: Served) -> dict[str, str]:
    """Give the header that opens the admin port."""
    return {"authorization": f"Bearer {(served.run_dir / 'admin-token').read_text().strip()}"}


def asked_openai(served: Served, tenant: str, text: str) -> Answered:
    """Ask by OpenAI's client; return the cached tokens and what the header says."""
    client = OpenAI(base_url=f"{served.url}/v1", api_key=f"key-{tenant}", max_retries=0)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    raw = client.with_options(default_headers={"x-session-id": "s1"}).chat.completions.with_raw_response.create(
        model="smollm2", messages=messages, max_tokens=4, temperature=0
    )
    usage = raw.parse().usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return usage.prompt_tokens_details.cached_tokens or 0, raw.headers["x-tidegate-cache"]


def asked_anthropic(served: Served, tenant: str, text: str) -> Answered:
    """Ask by Anthropic's client."""
    client = Anthropic(base_url=served.url, api_key=f"key-{tenant}", max_retries=0)
    raw = client.with_options(default_headers={"x-session-id": "s1"}).messages.with_raw_response.create(
        model="smollm2", system=SYSTEM, messages=[{"role": "user", "content": text}], max_tokens=4
    )
    return raw.parse().usage.cache_read_input_tokens or 0, raw.headers["x-tidegate-cache"]


def listed(served: Served) -> list[dict[str, str]]:
    """Give what the admin port lists."""
    return list(json.loads(get(served, "/admin/sessions", **token(served))[1])["sessions"])


@pytest.mark.parametrize("ask", [asked_openai, asked_anthropic])
def test_a_session_outlives_a_restart_of_everything(
    tmp_path: Path, ask: Callable[[Served, str, str], Answered]
) -> None:
    """Gateway, store and worker end and start again: the prompt is restored, for its tenant alone."""
    with serving(tmp_path, models=SMOLLM2, rest=REST) as served:
        served.event("worker.ready")
        cached, note = ask(served, "ada", "Where is paper 7?")
        assert (cached, note.split(";")[0]) == (0, "cached=0")

    with serving(tmp_path, models=SMOLLM2, rest=REST) as served:
        served.event("worker.ready")
        others, _ = ask(served, "bob", "Where is paper 7?")
        cached, note = ask(served, "ada", "Where is paper 14?")

    assert others == 0
    assert cached >= 1024
    assert "restored=" in note
    assert "(cold)" in note


def test_an_erased_session_is_computed_again(tmp_path: Path) -> None:
    """Erasing takes it from every tier; what the same tenant asks next after a restart restores nothing."""
    with serving(tmp_path, models=SMOLLM2, rest=REST) as served:
        served.event("worker.ready")
        asked_openai(served, "ada", "Where is paper 7?")

    with serving(tmp_path, models=SMOLLM2, rest=REST) as served:
        served.event("worker.ready")
        [kept] = listed(served)
        config = tmp_path / "gateway.toml"
        config.write_text(
            config.read_text().replace(
                'admin_listen = "127.0.0.1:0"', f'admin_listen = "{served.event("listening")["admin"]}"'
            )
        )
        run = subprocess.run(
            [TIDEGATE, "sessions", "erase", kept["session"], "--config", config],
            capture_output=True,
            text=True,
            check=True,
        )
        assert listed(served) == []
        cached, note = asked_openai(served, "ada", "Where is paper 7?")

    assert f"erased {kept['session']}" in run.stdout
    assert cached == 0
    assert "restored" not in note


def test_the_command_says_when_no_gateway_runs(tmp_path: Path) -> None:
    """Without a gateway there is a sentence that says so, not a traceback."""
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[server]\nrun_dir = "{tmp_path}/run"\n[[models]]\nname = "m"\nreleases = [{{ source = "echo" }}]\n'
    )

    run = subprocess.run(
        [TIDEGATE, "sessions", "list", "--config", config], capture_output=True, text=True, check=False
    )

    assert run.returncode == 1
    assert "start it with `tidegate serve`" in run.stderr
