"""The snippets that point clients here: valid in their own language, with the address, the model and a key's place."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from gateway.connect import CLIENTS, Target, snippet
from tests.serving import ECHO, SMOLLM2, TIDEGATE

TARGET = Target("http://127.0.0.1:8000", "it's a model", context_tokens=32768)


def exported(text: str) -> dict[str, str]:
    """Read the variables that a shell would export."""
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return dict(line[1].split("=", 1) for line in lines if line)


def config(text: str) -> dict[str, object]:
    """Read a snippet of JSON below its comment."""
    title, _, body = text.partition("\n")
    assert title.startswith("// ")
    return json.loads(body)


@pytest.mark.parametrize("client", CLIENTS)
def test_every_snippet_names_address_and_key(client: str) -> None:
    """Each says where the gateway is and where the key goes."""
    text = snippet(client, TARGET)

    assert TARGET.url in text
    assert TARGET.key in text


def test_the_openai_sdk_gets_its_environment() -> None:
    """OpenAI's address ends with /v1."""
    variables = exported(snippet("openai", TARGET))

    assert variables == {"OPENAI_BASE_URL": "http://127.0.0.1:8000/v1", "OPENAI_API_KEY": TARGET.key}


def test_the_anthropic_sdk_gets_its_environment() -> None:
    """Anthropic's address has no /v1, which its SDK adds; the model survives the shell."""
    variables = exported(snippet("anthropic", TARGET))

    assert (variables["ANTHROPIC_BASE_URL"], variables["ANTHROPIC_MODEL"]) == (TARGET.url, TARGET.model)


def test_open_webui_tells_its_chats_apart() -> None:
    """Open WebUI sends its chat's id only when told to forward it."""
    assert exported(snippet("open-webui", TARGET))["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"


def test_langchain_gets_python() -> None:
    """The snippet is Python that makes a ChatOpenAI with our model."""
    (call,) = [node for node in ast.walk(ast.parse(snippet("langchain", TARGET))) if isinstance(node, ast.Call)]

    assert [keyword.value.value for keyword in call.keywords][0] == TARGET.model  # type: ignore[attr-defined]  # noqa: RUF015


def test_openclaw_gets_a_provider() -> None:
    """OpenClaw's provider has our model with its window, and sends what keeps a session."""
    provider = config(snippet("openclaw", TARGET))["models"]["providers"]["tidegate"]  # type: ignore[index]
    (model,) = provider["models"]

    assert (provider["baseUrl"], model["id"], model["contextWindow"]) == (f"{TARGET.url}/v1", TARGET.model, 32768)
    assert model["compat"] == {"supportsPromptCacheKey": True, "sendSessionAffinityHeaders": True}


def test_opencode_gets_a_provider() -> None:
    """Opencode's provider speaks to us by the compatible package, with our model as the default."""
    given = config(snippet("opencode", TARGET))

    assert given["provider"]["tidegate"]["options"]["baseURL"] == f"{TARGET.url}/v1"  # type: ignore[index]
    assert given["model"] == f"tidegate/{TARGET.model}"


def connect(folder: Path, *arguments: str, models: str = ECHO, server: str = "") -> subprocess.CompletedProcess[str]:
    """Run `tidegate connect` for a configuration."""
    (folder / "gateway.toml").write_text(f"[server]\n{server}\n{models}")
    command = [TIDEGATE, "connect", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_what_the_file_says(tmp_path: Path) -> None:
    """Address and first model come from gateway.toml, another name from --model; a wildcard becomes loopback."""
    listening = 'listen = "0.0.0.0:9000"\n[auth]\nopen = true'
    openai = connect(tmp_path, "openai", server=listening)
    anthropic = connect(tmp_path, "anthropic", "--model", "gpt-4o-mini")

    assert "the model is echo" in openai.stdout
    assert exported(openai.stdout)["OPENAI_BASE_URL"] == "http://127.0.0.1:9000/v1"
    assert exported(anthropic.stdout)["ANTHROPIC_MODEL"] == "gpt-4o-mini"


@pytest.mark.parametrize(("release", "window"), [("", 8192), (", context = 2048", 2048)])
def test_the_window_is_the_release_s_or_the_model_s_own(tmp_path: Path, release: str, window: int) -> None:
    """What the file does not say is read from the model."""
    given = config(connect(tmp_path, "opencode", models=SMOLLM2.replace(" }]", f"{release} }}]")).stdout)

    assert given["provider"]["tidegate"]["models"]["smollm2"]["limit"]["context"] == window  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "models", "server", "said"),
    [
        (["openai", "--model", "gone"], ECHO, "", "there are: echo, gpt-4o-mini"),
        (["openai"], ECHO, 'listen = "127.0.0.1:0"', "give it a number"),
        (["openai"], ECHO.replace('"echo" }', '"gone.gguf" }'), "", "no such file"),
    ],
)
def test_what_cannot_be_connected_is_told(
    tmp_path: Path, arguments: list[str], models: str, server: str, said: str
) -> None:
    """A model that is not there and an address that nobody can know are told on standard error, with exit status 1."""
    run = connect(tmp_path, *arguments, models=models, server=server)

    assert (run.returncode, run.stdout) == (1, "")
    assert said in run.stderr
