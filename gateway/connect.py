"""What to put into a client so that it talks to this gateway: one snippet each, ready to be pasted.

Refuses to know whether the client is installed; nothing is read or changed, and no real
key is shown: each snippet has a place for it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import dumps

from gateway.settings import Config, Model
from gateway.units import Address

UNKNOWN_WINDOW = 8192
KEY = "tidegate-key"  # stands for a tenant's key; any text will do where the gateway is open


@dataclass(frozen=True, slots=True)
class Target:
    """What a client is pointed at: `url` without /v1, a model's name or alias, and its window in tokens."""

    url: str
    model: str
    context_tokens: int = UNKNOWN_WINDOW
    key: str = KEY


class ConnectError(Exception):
    """There is nothing to point a client at; the message says what to do."""


def find(config: Config, name: str) -> Model | None:
    """Return the model that `name` or an alias means."""
    return next((model for model in config.models if name in {model.name, *model.aliases}), None)


def model_of(config: Config, name: str | None) -> tuple[str, Model]:
    """Return the model that `name` or an alias means, and that name; without one, the first."""
    if name is None:
        return config.models[0].name, config.models[0]
    if (model := find(config, name)) is not None:
        return name, model
    known = ", ".join(each for model in config.models for each in (model.name, *model.aliases))
    raise ConnectError(f"no model has the name or alias {name!r}; there are: {known}")


def url_of(listen: Address) -> str:
    """Return the address to call from this machine, without /v1."""
    if not listen.port:
        raise ConnectError("listen under [server] takes any free port, so no client can know it; give it a number")
    return f"http://{listen.from_here}"


def snippet(client: str, target: Target) -> str:
    """Return what `client`, one of `CLIENTS`, needs; KeyError for another."""
    return CLIENTS[client](target)


def _openclaw(target: Target) -> str:
    model = {
        "id": target.model,
        "name": target.model,
        "reasoning": False,
        "input": ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": target.context_tokens,
        "maxTokens": target.context_tokens // 4,
        "compat": {"supportsPromptCacheKey": True, "sendSessionAffinityHeaders": True},
    }
    provider = {"baseUrl": f"{target.url}/v1", "apiKey": target.key, "api": "openai-completions", "models": [model]}
    config = {
        "models": {"providers": {"tidegate": provider}},
        "agents": {"defaults": {"model": {"primary": f"tidegate/{target.model}"}}},
    }
    return _titled("merge into openclaw.json, then: openclaw agent exec ping", dumps(config, indent=2), comment="//")


def _openai(target: Target) -> str:
    exports = _exports({"OPENAI_BASE_URL": f"{target.url}/v1", "OPENAI_API_KEY": target.key})
    return _titled(f"every OpenAI SDK reads these; the model is {target.model}", exports)


def _anthropic(target: Target) -> str:
    exports = _exports(
        {"ANTHROPIC_BASE_URL": target.url, "ANTHROPIC_API_KEY": target.key, "ANTHROPIC_MODEL": target.model}
    )
    return _titled(f"every Anthropic SDK reads the first two (without /v1); the model is {target.model}", exports)


def _langchain(target: Target) -> str:
    return _titled(
        "pip install langchain-openai",
        "from langchain_openai import ChatOpenAI",
        "",
        f"model = ChatOpenAI(model={dumps(target.model)}, base_url={dumps(target.url + '/v1')}, "
        f"api_key={dumps(target.key)})",
    )


def _opencode(target: Target) -> str:
    limit = {"context": target.context_tokens, "output": target.context_tokens // 4}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Tidegate",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": target.key},
        "models": {target.model: {"name": target.model, "limit": limit}},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {"tidegate": provider},
        "model": f"tidegate/{target.model}",
    }
    return _titled("merge into opencode.json", dumps(config, indent=2), comment="//")


def _open_webui(target: Target) -> str:
    exports = _exports(
        {
            "OPENAI_API_BASE_URLS": f"{target.url}/v1",
            "OPENAI_API_KEYS": target.key,
            "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
        }
    )
    title = "before open-webui serve; the last one lets each chat keep its session"
    return _titled(title, exports)


CLIENTS: Mapping[str, Callable[[Target], str]] = {
    "openclaw": _openclaw,
    "openai": _openai,
    "anthropic": _anthropic,
    "langchain": _langchain,
    "opencode": _opencode,
    "open-webui": _open_webui,
}


def _exports(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def _titled(title: str, *lines: str, comment: str = "#") -> str:
    return "\n".join((f"{comment} {title}", *lines, ""))
