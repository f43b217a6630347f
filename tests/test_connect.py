"""The snippets that point clients here: valid in their own language, with the address, the model and a key's place."""

from __future__ import annotations

import ast
import json
import shlex

import pytest

from gateway.connect import CLIENTS, Target, snippet

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
