"""The clients people run, each the real package, against a real `tidegate serve` with the embedded model.

`make test-clients` runs those that come from npm. What each can do and what its users see of a fault stands in
tests/clients/clients.toml, which is also the table in docs/clients.md.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache

import jsonschema
import pytest

from tests.clients.matrix import FAULTS, Client, clients, install, outcome, reports
from tests.clients.relay import Relay
from tests.clients.reports import CITY, COLOUR, COLOURS, Report, Task
from tests.serving import Served

pytestmark = pytest.mark.timeout(900)  # npm's download, and seven clients that share two cores with their server
Told = Callable[[Client, str], Report]
PROMPTS = {"cancel": "Count to a thousand."}


def rows(pick: Callable[[Client], tuple[str, ...]]) -> list[object]:
    """Give (client, what) for each thing picked; those from npm are marked."""
    marks = {"python": (), "javascript": (pytest.mark.clients,)}
    return [
        pytest.param(client, what, id=f"{client.module}-{what}", marks=marks[client.language])
        for client in clients()
        for what in pick(client)
    ]


def of(language: str) -> list[Client]:
    """Give the clients of a language, installed."""
    if language == "javascript":
        install()
    return [client for client in clients() if client.language == language]


@pytest.fixture(scope="session")
def relay(served_echo: Served) -> Iterator[Relay]:
    """Give a relay before the echo model."""
    with Relay(served_echo.url) as relay:
        yield relay


@pytest.fixture(scope="session")
def told(served_model: Served, relay: Relay) -> Told:
    """Have all clients of a language do all they can and meet all faults, when the first of them is asked for."""

    def feature(client: Client, what: str) -> Task:
        headers = {"x-request-id": call_name(client, what)}
        return Task(served_model.url, "smollm2", prompt=PROMPTS.get(what, COLOURS), headers=headers)

    def fault(client: Client, what: str) -> Task:
        met = FAULTS[what]
        url = f"{relay.url}/{client.module}/{met.path}"
        limits = {"timeout_s": met.timeout_s, "patience_s": met.patience_s, "max_tokens": 1000}
        return Task(url, "echo", prompt=met.prompt, **limits)

    @cache
    def together(language: str) -> dict[tuple[str, str], Report]:
        return reports(
            [
                (client, {w: feature(client, w) for w in client.features} | {w: fault(client, w) for w in FAULTS})
                for client in of(language)
            ]
        )

    return lambda client, what: together(client.language)[client.module, what]


def call_name(client: Client, feature: str) -> str:
    """Give the id under which the gateway's log has a call."""
    return f"{client.module}-{feature.replace(' ', '-')}"


@pytest.fixture(scope="session")
def truth(served_model: Served) -> Report:
    """Ask what the clients ask, without any client."""
    task = Task(served_model.url, "smollm2")
    body = {"model": task.model, "messages": task.said(), "max_tokens": task.max_tokens, "temperature": 0}
    request = urllib.request.Request(f"{task.v1}/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        whole = json.load(answer)
    return {"text": whole["choices"][0]["message"]["content"], "prompt_tokens": whole["usage"]["prompt_tokens"]}


@pytest.mark.parametrize(("client", "feature"), rows(lambda client: client.features))
def test_a_client_can(client: Client, feature: str, told: Told, truth: Report, served_model: Served) -> None:
    """What clients.toml says a client can do works: the same text and counts for all, calls and objects that fit."""
    report = told(client, feature)

    assert "error" not in report, report
    match feature:
        case "whole" | "stream":
            assert report == truth | {"finish": client.cut}
        case "tools" | "tools streamed":
            jsonschema.validate(report["tool"]["arguments"], CITY)
            assert report["tool"]["name"] == "weather"
            assert report["tool"]["id"]
        case "tool results":
            assert report["text"]
        case "schema":
            jsonschema.validate(report["parsed"], COLOUR)
        case "cancel":
            assert served_model.event("request", request_id=call_name(client, feature))["status"] == 499
        case "models":
            assert report["names"] == ["smollm2"]
        case "count":
            assert report["prompt_tokens"] == truth["prompt_tokens"]
        case _:
            pytest.fail(f"nobody checks {feature}")


@pytest.mark.parametrize(("client", "fault"), rows(lambda _: tuple(FAULTS)))
def test_a_fault_is_seen(client: Client, fault: str, told: Told, relay: Relay) -> None:
    """A fault raises what clients.toml says, after as many retries; no client takes a broken answer for a whole one."""
    report = told(client, fault)

    assert outcome(report, relay.tries(client.module, FAULTS[fault].path)) == client.faults[fault]
