"""docs/fields.md is true: it lists what OpenAI and Anthropic publish, and the parsers do what it says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from anthropic.types import message_create_params as messages
from openai.types import completion_create_params as completions
from openai.types import embedding_create_params as embeddings
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses

from backends.api import Call
from gateway.dialects import Endpoint
from gateway.dialects.anthropic import Messages
from gateway.dialects.openai import Chat, Completions
from gateway.dialects.responses import Responses
from gateway.dialects.stored import MemoryResponses
from gateway.embeddings import Embeddings
from gateway.identity import session_of
from gateway.refusal import Refusal

PAGE = (Path(__file__).parent.parent / "docs/fields.md").read_text()
HI = [{"role": "user", "content": "hi"}]
PUBLISHED: dict[str, type] = {
    "chat": chat.CompletionCreateParamsStreaming,
    "completions": completions.CompletionCreateParamsStreaming,
    "responses": responses.ResponseCreateParamsStreaming,
    "messages": messages.MessageCreateParamsStreaming,
    "embeddings": embeddings.EmbeddingCreateParams,
}
DIALECTS: dict[str, tuple[Endpoint, dict[str, object]]] = {
    "chat": (Chat(), {"messages": HI}),
    "completions": (Completions(), {"prompt": "hi"}),
    "responses": (Responses(MemoryResponses()), {"input": "hi"}),
    "messages": (Messages(), {"messages": HI, "max_tokens": 9}),
    "embeddings": (Embeddings(), {"input": "hi"}),
}
NO_LONGER_PUBLISHED = {"messages": {"temperature", "top_k", "top_p"}}
HARMLESS: dict[str, object] = {"truncation": "auto"}


def rows(endpoint: str) -> dict[str, str]:
    """Read what the page says of each field of an endpoint."""
    _, _, rest = PAGE.partition(f"<!-- fields {endpoint} -->\n")
    return dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", rest.partition("\n\n")[0], re.MULTILINE))


def told(kind: str) -> list[tuple[str, str]]:
    """Give endpoint and field of each row of a kind."""
    return [(endpoint, field) for endpoint in DIALECTS for field, said in rows(endpoint).items() if said == kind]


def parse(endpoint: str, **fields: object) -> Call:
    """Read a body of that endpoint with these fields."""
    dialect, needed = DIALECTS[endpoint]
    return dialect.parse(json.dumps({"model": "m"} | needed | fields).encode(), call_id="c1", tenant="t")


@pytest.mark.parametrize("endpoint", DIALECTS)
def test_every_published_field_is_listed(endpoint: str) -> None:
    """The page lists the fields that the publisher's SDK knows, and no others."""
    published = set(PUBLISHED[endpoint].__annotations__)  # a TypedDict's includes those it inherits

    assert set(rows(endpoint)) == published | NO_LONGER_PUBLISHED.get(endpoint, set())


@pytest.mark.parametrize(("endpoint", "field"), told("supported"))
def test_a_supported_field_is_read(endpoint: str, field: str) -> None:
    """A value that it cannot have is refused by its name."""
    with pytest.raises(Refusal) as caught:
        parse(endpoint, **{field: [1.5]})

    assert (caught.value.status, re.split(r"[.\[]", str(caught.value.param))[0]) == (400, field)


@pytest.mark.parametrize(("endpoint", "field"), told("refused"))
def test_a_refused_field_is_refused(endpoint: str, field: str) -> None:
    """Using it is a 400 that names it; null is the same as absent."""
    with pytest.raises(Refusal) as caught:
        parse(endpoint, **{field: ["something"]})

    assert (caught.value.status, caught.value.param) == (400, field)
    assert parse(endpoint, **{field: None}) == parse(endpoint)


@pytest.mark.parametrize(("endpoint", "field"), told("ignored"))
def test_an_ignored_field_changes_nothing(endpoint: str, field: str) -> None:
    """With it the call is the same as without."""
    assert replace(parse(endpoint, **{field: HARMLESS.get(field, "x")}), body={}) == parse(endpoint)


@pytest.mark.parametrize(("endpoint", "field"), told("session"))
def test_a_session_field_names_the_session(endpoint: str, field: str) -> None:
    """With it the call has a session, and is else the same."""
    given = {field: {"user_id": "x"} if field == "metadata" else "x"}
    session = session_of({}, parse(endpoint, **given).body, tenant="t")

    assert session is not None
    assert session.id == "x"
    assert parse(endpoint, **given) == parse(endpoint)
