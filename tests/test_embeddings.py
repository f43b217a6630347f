"""Embeddings through the real SDK: from our encoder, from another server, and refused where there are none."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from gateway.settings import Release
from tests.conftest import MINILM
from tests.serving import ECHO, Served, serving
from tests.upstreams import gateway_of, scripted, status

MODEL = f'[[models]]\nname = "minilm"\nreleases = [{{ source = "{MINILM}" }}]\n'
FRONT = """
[[models]]
name = "{name}"
releases = [{{ url = "{url}/v1", dialect = "{dialect}", upstream_model = "minilm" }}]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a gateway with the encoder."""
    with serving(tmp_path_factory.mktemp("minilm"), models=MODEL + ECHO) as back:
        back.event("worker.ready")
        yield back


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, served: Served) -> Iterator[Served]:
    """Run a gateway in front of it."""
    models = [
        FRONT.format(name=f"of-{dialect}", url=served.url, dialect=dialect) for dialect in ("openai", "anthropic")
    ]
    with serving(tmp_path_factory.mktemp("front"), models="".join(models)) as gateway:
        gateway.event("upstream.ready", nth=2)
        yield gateway


def client_of(gateway: Served) -> openai.OpenAI:
    """Give a client that does not retry."""
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def similarity(one: list[float], other: list[float]) -> float:
    """Give the cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_what_means_the_same_is_near(served: Served) -> None:
    """The vectors are of length 1, in the order of the inputs, with exact counts, also in the log."""
    inputs = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]

    with client_of(served) as client:
        answer = client.embeddings.create(model="minilm", input=inputs)

    cat, kitten, rates = [entry.embedding for entry in answer.data]
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert len(cat) == 384
    assert similarity(cat, cat) == pytest.approx(1, abs=1e-5)
    assert similarity(cat, kitten) > 0.5
    assert similarity(cat, rates) < 0.2
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 9 + 9 + 7
    assert served.event("request", model="minilm", prompt_tokens=25)["path"] == "/v1/embeddings"


def test_base64_and_numbers_are_the_same_vector(served: Served) -> None:
    """The SDK asks for base64 unless told otherwise; curl gets numbers."""
    with client_of(served) as client:
        plain = client.embeddings.with_raw_response.create(model="minilm", input="hello", encoding_format="float")
        coded = client.embeddings.with_raw_response.create(model="minilm", input="hello", encoding_format="base64")

    numbers = json.loads(plain.content)["data"][0]["embedding"]
    packed = base64.b64decode(json.loads(coded.content)["data"][0]["embedding"])
    assert list(struct.unpack("<384f", packed)) == numbers


def test_tokens_may_be_sent_instead_of_text(served: Served) -> None:
    """One array of tokens is one input, an array of arrays several."""
    tokens = [101, 7592, 102]

    with client_of(served) as client:
        text = client.embeddings.create(model="minilm", input="hello").data[0].embedding
        one = client.embeddings.create(model="minilm", input=tokens).data
        two = client.embeddings.create(model="minilm", input=[tokens, tokens]).data

    assert similarity(one[0].embedding, text) == pytest.approx(1, abs=1e-5)
    assert len(two) == 2


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"input": "word " * 300}, "input[0]", "302 tokens"),
        ({"input": "a", "dimensions": 8}, "dimensions", "384"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": [1.5]}, "input[0]", "string"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "base64"),
    ],
)
def test_a_mistake_is_named(served: Served, asked: dict[str, object], param: str, words: str) -> None:
    """What cannot be embedded is a 400 that says which field and why."""
    with client_of(served) as client, pytest.raises(openai.BadRequestError, match=words) as refused:
        client.embeddings.create(**{"model": "minilm", "encoding_format": "float", **asked})

    assert refused.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_with_an_encoder_is_refused(served: Served, *, stream: bool) -> None:
    """It has no words, and says so."""
    messages = [{"role": "user", "content": "hi"}]

    with client_of(served) as client, pytest.raises(openai.BadRequestError, match="it makes embeddings") as refused:
        client.chat.completions.create(model="minilm", messages=messages, stream=stream)

    assert refused.value.code == "unsupported_by_model"


def test_a_model_of_words_makes_no_embeddings(served: Served) -> None:
    """The echo says so; so does a worker with a language model."""
    with client_of(served) as client, pytest.raises(openai.BadRequestError, match="cannot make embeddings") as refused:
        client.embeddings.create(model="echo", input="hi")

    assert refused.value.code == "unsupported_by_model"


def test_a_language_model_makes_no_embeddings(served_model: Served) -> None:
    """The worker refuses the question and goes on."""
    with client_of(served_model) as client:
        with pytest.raises(openai.BadRequestError, match="cannot make embeddings"):
            client.embeddings.create(model="smollm2", input="hi")

        answer = client.completions.create(model="smollm2", prompt="Hi", max_tokens=1)
    assert answer.usage.completion_tokens == 1


def test_another_server_s_embeddings_come_through(served: Served, front: Served) -> None:
    """Through a gateway in front they are the same, to the last bit."""
    with client_of(served) as near, client_of(front) as far:
        direct = near.embeddings.create(model="minilm", input=["hello", "world"])
        relayed = far.embeddings.create(model="of-openai", input=["hello", "world"])

    assert [entry.embedding for entry in relayed.data] == [entry.embedding for entry in direct.data]
    assert relayed.usage == direct.usage


def test_a_server_that_only_speaks_anthropic_s_api_has_none(front: Served) -> None:
    """That API has no embeddings."""
    with client_of(front) as client, pytest.raises(openai.BadRequestError, match="cannot make embeddings"):
        client.embeddings.create(model="of-anthropic", input="hi")


async def test_fields_of_the_call_reach_the_server(tmp_path: Path) -> None:
    """Dimensions and what else it may know are passed on; a vector in base64 is read as well."""
    packed = base64.b64encode(struct.pack("<2f", 1, 0.5)).decode()
    said = {"data": [{"index": 0, "embedding": packed}], "usage": {"prompt_tokens": 3}}
    async with (
        scripted(status(200, said)) as upstream,
        gateway_of(tmp_path, Release(url=upstream.url, upstream_model="big")) as gateway,
        openai.AsyncOpenAI(base_url=f"http://{gateway.address}/v1", api_key="none") as client,
    ):
        answer = await client.embeddings.create(model="m", input="hi", dimensions=2, extra_body={"x": 1})

    path, _, body = upstream.asked[0]
    assert (answer.data[0].embedding, answer.usage.prompt_tokens) == ([1, 0.5], 3)
    assert (path, body) == (
        "/v1/embeddings",
        {"model": "big", "input": "hi", "dimensions": 2, "x": 1, "encoding_format": "float"},
    )


@pytest.mark.parametrize("said", [{"data": []}, {"data": [{"embedding": "!"}]}, {"data": [{"embedding": [None]}]}, []])
async def test_vectors_that_are_none_are_a_failure(tmp_path: Path, said: object) -> None:
    """A server that answers something else is told of as broken."""
    async with (
        scripted(status(200, said)) as upstream,
        gateway_of(tmp_path, Release(url=upstream.url)) as gateway,
        openai.AsyncOpenAI(base_url=f"http://{gateway.address}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="other vectors"):
            await client.embeddings.create(model="m", input="hi")
