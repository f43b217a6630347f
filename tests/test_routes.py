"""Every route of the data port through real SDKs and a real port: each API's answers, and how each API says no."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import anthropic
import openai
import pytest
from anthropic.types import ModelInfo

from gateway.auth import key_hash
from tests.serving import ECHO, Served, serving

TENANTS = "".join(f'[[tenants]]\nname = "{name}"\nkeys = ["{key_hash(name)}"]\n' for name in ("one", "two"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a gateway with the echo model and two tenants, whose keys are their names."""
    with serving(tmp_path_factory.mktemp("tenants"), rest=TENANTS, models=ECHO) as served:
        yield served


@pytest.fixture
def anthropic_sdk(served: Served) -> Iterator[anthropic.Anthropic]:
    """Give tenant one's Anthropic client."""
    with anthropic.Anthropic(base_url=served.url, api_key="one", max_retries=0) as client:
        yield client


@pytest.fixture
def openai_sdk(served: Served) -> Iterator[openai.OpenAI]:
    """Give tenant one's OpenAI client."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="one", max_retries=0) as client:
        yield client


@pytest.fixture
def stranger(served: Served) -> Iterator[openai.OpenAI]:
    """Give tenant two's."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="two", max_retries=0) as client:
        yield client


def said(text: str) -> list[dict[str, str]]:
    """Give a conversation of one message."""
    return [{"role": "user", "content": text}]


def ask(
    served: Served, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, dict[str, str], dict[str, object]]:
    """Send a request with tenant one's key; return status, headers and JSON."""
    parts = urlsplit(served.url)
    named = {"x-api-key": "one"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), named)
        response = connection.getresponse()
        content = response.read()
        return response.status, dict(response.headers), json.loads(content) if content else {}


def events_of(served: Served, path: str, body: object, **headers: str) -> bytes:
    """Send a request with tenant one's key; return the stream as it came."""
    parts = urlsplit(served.url)
    named = {"x-api-key": "one"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
        connection.request("POST", path, json.dumps(body), named)
        response = connection.getresponse()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
        return response.read()


def test_a_message_is_answered(anthropic_sdk: anthropic.Anthropic) -> None:
    """Anthropic's client gets its message, with usage and the request's id."""
    message = anthropic_sdk.messages.create(model="echo", max_tokens=9, messages=said("hello there"))

    assert message.content[0].text == "hello there"
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 2, 2)
    assert message._request_id


def test_a_message_is_streamed(anthropic_sdk: anthropic.Anthropic) -> None:
    """The stream's helper gathers the same message."""
    with anthropic_sdk.messages.stream(model="echo", max_tokens=2, messages=said("a b c")) as stream:
        texts = list(stream.text_stream)

    assert texts == ["a", " b"]
    assert stream.get_final_message().stop_reason == "max_tokens"


def test_tokens_of_a_message_are_counted(anthropic_sdk: anthropic.Anthropic) -> None:
    """The count is that of the usage that the message would have."""
    asked = {"model": "echo", "system": "be brief", "messages": said("one two three")}
    counted = anthropic_sdk.messages.count_tokens(**asked)

    assert counted.input_tokens == anthropic_sdk.messages.create(**asked, max_tokens=1).usage.input_tokens == 5


def test_models_are_listed_for_both_kinds_of_clients(
    anthropic_sdk: anthropic.Anthropic, openai_sdk: openai.OpenAI
) -> None:
    """One list is read by OpenAI's and, strictly, by Anthropic's types."""
    listed = anthropic_sdk.models.list()

    assert [model.id for model in listed] == [model.id for model in openai_sdk.models.list()] == ["echo", "gpt-4o-mini"]
    assert (listed.first_id, listed.last_id, listed.has_more) == ("echo", "gpt-4o-mini", False)
    ModelInfo.model_validate_json(anthropic_sdk.models.retrieve("gpt-4o-mini").model_dump_json(), strict=True)


def test_a_response_is_kept_and_continued(openai_sdk: openai.OpenAI) -> None:
    """A stored response can be fetched, continued and deleted; then it is gone."""
    first = openai_sdk.responses.create(model="echo", input="hello")
    second = openai_sdk.responses.create(model="echo", input="and more", previous_response_id=first.id)

    assert openai_sdk.responses.retrieve(first.id).output_text == "hello"
    assert second.usage.input_tokens == 4  # hello, hello, and, more
    openai_sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        openai_sdk.responses.retrieve(first.id)


def test_a_response_is_streamed(openai_sdk: openai.OpenAI) -> None:
    """The stream's helper gathers the response."""
    with openai_sdk.responses.stream(model="echo", input="a b c") as stream:
        assert stream.get_final_response().output_text == "a b c"


def test_what_another_tenant_stored_does_not_exist(openai_sdk: openai.OpenAI, stranger: openai.OpenAI) -> None:
    """A foreign response can be neither fetched, continued nor deleted: 404, as if it had never been."""
    mine = openai_sdk.responses.create(model="echo", input="secret")

    for act in (
        lambda: stranger.responses.retrieve(mine.id),
        lambda: stranger.responses.delete(mine.id),
        lambda: stranger.responses.create(model="echo", input="and?", previous_response_id=mine.id),
    ):
        with pytest.raises(openai.NotFoundError):
            act()
    assert openai_sdk.responses.retrieve(mine.id).output_text == "secret"


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/responses", {"input": "a"}),
        ("/messages", {"messages": said("a"), "max_tokens": 1}),
        ("/messages/count_tokens", {"messages": said("a")}),
        ("/tokenize", {"prompt": "a b"}),
        ("/detokenize", {"tokens": [1, 2]}),
        ("/version", None),
        ("/health", None),
    ],
)
def test_every_path_works_with_and_without_v1(served: Served, prefix: str, path: str, body: dict[str, object]) -> None:
    """Whatever a client's base URL ends with, it arrives."""
    method, sent = ("GET", None) if body is None else ("POST", {"model": "echo", **body})

    assert ask(served, method, prefix + path, sent)[0] == 200


def test_tokens_are_told_in_vllm_s_shape(served: Served) -> None:
    """Tokenize tells the tokens, their count and the window; detokenize the text."""
    _, _, text = ask(served, "POST", "/tokenize", {"model": "echo", "prompt": "a b c"})
    _, _, chat = ask(served, "POST", "/tokenize", {"model": "echo", "messages": said("a b")})

    assert (text["count"], text["max_model_len"], text["tokens"], text["token_strs"]) == (3, 1 << 20, [0, 1, 2], None)
    assert chat["count"] == 2
    assert ask(served, "POST", "/detokenize", {"model": "echo", "tokens": [7, 8]})[2] == {"prompt": "7 8"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
        ("/tokenize", {"messages": said("a"), "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(
    served: Served, path: str, body: dict[str, object], param: str
) -> None:
    """What would count another prompt than a call's is a 400 that names the field."""
    status, _, told = ask(served, "POST", path, {"model": "echo", **body})

    assert (status, told["error"]["param"]) == (400, param)


def test_the_embedded_model_s_tokens_are_exact(served_model: Served) -> None:
    """Counting, tokenizing and answering agree, a text comes back whole, and a prompt beyond the window is counted."""
    url = served_model.url
    with (
        anthropic.Anthropic(base_url=url, api_key="-") as anthropic_sdk,
        openai.OpenAI(base_url=url, api_key="-") as openai_sdk,
    ):
        messages = said("Grüße 👋 from <|im_end|> there")
        counted = anthropic_sdk.messages.count_tokens(model="smollm2", messages=messages).input_tokens
        told = openai_sdk.post("/tokenize", body={"model": "smollm2", "messages": messages}, cast_to=dict)
        answer = openai_sdk.chat.completions.create(model="smollm2", messages=messages, max_tokens=1)
        text = openai_sdk.post("/detokenize", body={"model": "smollm2", "tokens": told["tokens"]}, cast_to=dict)[
            "prompt"
        ]
        long = anthropic_sdk.messages.count_tokens(model="smollm2", messages=said("word " * 9000)).input_tokens

    assert counted == told["count"] == answer.usage.prompt_tokens
    assert f"user\n{messages[0]['content']}<|im_end|>" in text
    assert long > told["max_model_len"]


ANTHROPIC_NO = [
    ("GET", "/v1/messages", {}, 405, "invalid_request_error"),
    ("POST", "/v1/messages", {"x_api_key": "DUMMY_KEY"}, 401, "authentication_error"),
    ("POST", "/v1/messages/batches", {}, 404, "not_found_error"),
    ("POST", "/v1/messages", {"content_length": "99999999"}, 413, "request_too_large"),
    ("GET", "/v1/models/gone", {"anthropic_version": "2026-10-21"}, 404, "not_found_error"),
    ("GET", "/v1/files", {"anthropic_version": "2023-06-01"}, 404, "not_found_error"),
    ("POST", "/v1/messages", {"origin": "https://evil.example"}, 403, "permission_error"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "kind"), ANTHROPIC_NO)
def test_anthropic_s_routes_say_no_in_anthropic_s_shape(
    served: Served, method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    """Before anything is parsed the error has Anthropic's type, and the id that the headers have too."""
    given, answered, body = ask(served, method, path, **headers)

    assert (given, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == answered["x-request-id"] == answered["request-id"]


@pytest.mark.parametrize(("path", "status"), [("/v1/responses/resp_gone", 404), ("/v1/nothing", 404), ("/v1", 404)])
def test_other_routes_say_no_in_openai_s_shape(served: Served, path: str, status: int) -> None:
    """What isn't Anthropic's is refused as OpenAI does."""
    given, _, body = ask(served, "GET", path)

    assert (given, body["error"]["code"]) == (status, "not_found")


def test_overload_is_a_529_for_anthropic(anthropic_sdk: anthropic.Anthropic) -> None:
    """The overload of a backend has Anthropic's own status, with an integer Retry-After."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        anthropic_sdk.messages.create(model="echo", max_tokens=9, messages=said("echo:overloaded"))

    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (529, "1")
    assert caught.value.body["error"]["type"] == "overloaded_error"


def test_a_broken_message_raises(anthropic_sdk: anthropic.Anthropic) -> None:
    """A failure after the first token raises in Anthropic's client instead of ending the message quietly."""
    with (
        pytest.raises(anthropic.APIStatusError, match="after 2 words"),
        anthropic_sdk.messages.stream(model="echo", max_tokens=9, messages=said("echo:error=2 a b c")) as stream,
    ):
        stream.until_done()


@pytest.mark.parametrize(
    ("path", "key", "length", "status"),
    [
        ("/v1/chat/completions", "wrong", 9_000_000, 401),
        ("/v1/messages", "wrong", 9_000_000, 401),
        ("/v1/messages", "one", 99_000_000, 413),
        ("/v1/nothing", "one", 9_000_000, 404),
    ],
)
def test_a_large_body_is_not_read_to_be_refused(served: Served, path: str, key: str, length: int, status: int) -> None:
    """What the head alone tells is refused before the body has come: who has no key sends no 9 MB for nothing."""
    parts = urlsplit(served.url)
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
        connection.putrequest("POST", path)
        connection.putheader("x-api-key", key)
        connection.putheader("content-length", str(length))
        connection.endheaders()
        response = connection.getresponse()  # comes although no byte of the body was sent

    assert response.status == status


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_only_the_body_says_whether_to_stream(served: Served, path: str) -> None:
    """What a client accepts, or would unpack, changes nothing: JSON stays JSON, events stay events, uncompressed."""
    asked = {"model": "echo", "max_tokens": 9, "messages": said("hi"), "input": "hi"}
    _, whole, _ = ask(served, "POST", path, asked, accept="text/event-stream", accept_encoding="gzip, br")
    events = events_of(served, path, asked | {"stream": True}, accept="application/json", accept_encoding="gzip, br")

    assert (whole["content-type"], whole.get("content-encoding")) == ("application/json", None)
    assert events.startswith((b"data: ", b"event: "))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
def test_what_nobody_knows_is_accepted(served: Served, path: str) -> None:
    """Fields that clients send beyond what is published, and headers that are no numbers, disturb nobody."""
    asked = {"model": "echo", "max_tokens": 9, "input": "hi", "messages": said("hi")}
    asked |= {"prompt": "hi"} if path.endswith("/completions") else {}
    unknown = {"store": True, "stop": None, "ignore_eos": True, "continuous_usage_stats": True, "prompt_cache_key": "k"}
    headers = {"x_stainless_retry_count": "NOT_GIVEN", "x_stainless_timeout": "never", "anthropic_beta": "a-2099,b"}

    status, _, _ = ask(served, "POST", path, asked | unknown, anthropic_version="2026-10-21", **headers)

    assert status == 200


def test_a_model_answers_to_the_names_that_clients_insist_on(tmp_path: Path) -> None:
    """Aliases let clients with built-in model names in; the answer has the name that was asked for."""
    models = ECHO.replace('"gpt-4o-mini"', '"gpt-4o-mini", "claude-haiku-4-5"')
    with serving(tmp_path, models=models) as served:
        with anthropic.Anthropic(base_url=served.url, api_key="-") as anthropic_sdk:
            message = anthropic_sdk.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=said("hi"))
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-") as openai_sdk:
            completion = openai_sdk.chat.completions.create(model="gpt-4o-mini", messages=said("hi"))

    assert (message.model, completion.model) == ("claude-haiku-4-5", "gpt-4o-mini")


def test_no_page_may_call_unless_it_is_configured(served: Served) -> None:
    """By default a page's preflight is refused, and an answer gives no page permission to read it."""
    page = {"origin": "https://chat.example.org"}

    assert ask(served, "OPTIONS", "/v1/models", access_control_request_method="GET", **page)[0] == 403
    assert "access-control-allow-origin" not in ask(served, "GET", "/v1/models", origin="http://localhost:3000")[1]


@pytest.mark.parametrize("origins", ['["https://chat.example.org"]', '["*"]'])
def test_a_configured_page_may_call(tmp_path: Path, origins: str) -> None:
    """cors_origins lets a page ask first, call, read the answer, and read refusals too; without a key it is nobody."""
    page = {"origin": "https://chat.example.org"}
    asked_first = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    with serving(tmp_path, server=f"cors_origins = {origins}", rest=TENANTS) as served:
        preflight = ask(served, "OPTIONS", "/v1/chat/completions", x_api_key="", **asked_first, **page)
        answers = [ask(served, "GET", "/v1/models", x_api_key=key, **page) for key in ("one", "")]
        other = ask(served, "GET", "/v1/models", origin="https://evil.example")[1]

    assert (preflight[0], preflight[1]["access-control-allow-headers"]) == (204, "authorization")
    assert [status for status, _, _ in answers] == [200, 401]
    for headers in (preflight[1], *(headers for _, headers, _ in answers)):
        assert (headers["access-control-allow-origin"], headers["vary"]) == (page["origin"], "origin")
    assert ("access-control-allow-origin" in other) == (origins == '["*"]')


def test_version_and_health_need_no_key(served: Served) -> None:
    """Load balancers and tools that look around have no key."""
    assert ask(served, "GET", "/version", x_api_key="")[2]["version"]
    assert ask(served, "GET", "/health", x_api_key="")[0] == 200
    assert ask(served, "GET", "/v1/models", x_api_key="")[0] == 401


def test_a_stopping_gateway_says_so_in_each_shape(tmp_path: Path) -> None:
    """While running calls finish, new ones are refused: 503 for OpenAI's clients, 529 for Anthropic's."""
    with serving(tmp_path) as served:
        parts = urlsplit(served.url)
        open_calls = [http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30) for _ in range(3)]
        for connection in open_calls:  # a draining gateway takes no new connection, but hears those that are open
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        stalled = {"model": "echo", "stream": True, "messages": said("echo:stall=1 a b")}
        open_calls[0].request("POST", "/v1/chat/completions", json.dumps(stalled))
        open_calls[0].getresponse()
        served.process.terminate()
        served.event("draining")
        answers = []
        for connection, path in zip(open_calls[1:], ("/v1/chat/completions", "/v1/messages"), strict=True):
            connection.request("POST", path, "{}")
            response = connection.getresponse()
            answers.append(
                (response.status, json.loads(response.read())["error"]["type"], response.headers["retry-after"])
            )
        served.process.terminate()
        for connection in open_calls:
            connection.close()

    assert answers == [(503, "server_error", "5"), (529, "overloaded_error", "5")]
