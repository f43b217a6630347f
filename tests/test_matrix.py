"""Every API of ours on every kind of backend: whoever asks, and whoever answers, the answer is the same.

The backends: an echo, our worker with the embedded model, and another Tidegate with both of them, spoken to in OpenAI's
and in Anthropic's API. What an API has no words for stands at the cases; all the rest works.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
import jsonschema
import pytest

from tests.asking import SCHEMA, SPEECHES, TOOL, Answered, ask
from tests.serving import ECHO, SMOLLM2, Served, serving

DIALECTS = list(SPEECHES)
HTTP = """
[[models]]
name = "{name}"
releases = [{{ url = "{url}", dialect = "{dialect}", upstream_model = "{model}" }}]
"""
UPSTREAM = ("openai", "anthropic")


@dataclass
class Side:
    """Two gateways: `back` has the models, `front` has `back`."""

    back: Served
    front: Served

    async def ask(self, dialect: str, backend: str, text: str, **features: object) -> Answered:
        """Ask one of the backends."""
        is_here = backend in {"echo", "smollm2"}
        return await ask((self.back if is_here else self.front).url, dialect, backend, text, **features)


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """Start both."""
    with serving(tmp_path_factory.mktemp("back"), models=ECHO + SMOLLM2) as back:
        models = "".join(
            HTTP.format(name=f"{dialect}-{model}", url=f"{back.url}/v1", dialect=dialect, model=model)
            for dialect in UPSTREAM
            for model in ("echo", "smollm2")
        )
        with serving(tmp_path_factory.mktemp("front"), models=models) as front:
            back.event("worker.ready")
            front.event("upstream.ready", nth=4)
            yield Side(back, front)


def cases(*backends: str, without: tuple[tuple[str, str], ...] = ()) -> pytest.MarkDecorator:
    """Pair every API with every backend but those that cannot be."""
    pairs = [(d, b) for d in DIALECTS for b in backends if (d, b) not in without and (d, "*") not in without]
    return pytest.mark.parametrize(("dialect", "backend"), pairs)


ECHOES = ("echo", "openai-echo", "anthropic-echo")
MODELS = ("smollm2", "openai-smollm2", "anthropic-smollm2")
# Anthropic's API has no text completions; text completions have no tools; responses have no stop strings.
NO_PROMPTS = (("completions", "anthropic-echo"), ("completions", "anthropic-smollm2"))
NO_TOOLS = (("completions", "*"),)
NO_STOPS = (("responses", "*"),)
# A text completion has no thoughts; Anthropic's API shows them to those who ask, for which others have no words.
NO_THOUGHTS = (("completions", "*"), ("chat", "anthropic-echo"), ("responses", "anthropic-echo"))


@cases(*ECHOES, without=NO_PROMPTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_text_comes_through_with_its_counts(gateways: Side, dialect: str, backend: str, *, stream: bool) -> None:
    """Streamed or whole, the words and their number are right, and the answer ends as it should."""
    answer = await gateways.ask(dialect, backend, "one two three", stream=stream)

    assert (answer.text, answer.finish, answer.is_whole) == ("one two three", "stop", True)
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 3)


@cases(*ECHOES, without=NO_PROMPTS)
async def test_a_limit_cuts(gateways: Side, dialect: str, backend: str) -> None:
    """A cut answer says that it was cut."""
    answer = await gateways.ask(dialect, backend, "one two three", most=2, stream=True)

    assert (answer.text, answer.finish, answer.completion_tokens) == ("one two", "length", 2)


@cases(*ECHOES, without=(*NO_PROMPTS, *NO_STOPS))
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_stops(gateways: Side, dialect: str, backend: str, *, stream: bool) -> None:
    """It ends the answer and is not part of it."""
    answer = await gateways.ask(dialect, backend, "one two three", stop=["three"], stream=stream)

    assert (answer.text.rstrip(), answer.finish) == ("one two", "stop")


@cases(*ECHOES, without=NO_THOUGHTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_come_apart_from_the_answer(gateways: Side, dialect: str, backend: str, *, stream: bool) -> None:
    """What was thought is told beside the answer, never in it, and counts."""
    answer = await gateways.ask(dialect, backend, "echo:think=2 one two three", think=True, stream=stream)

    assert (answer.reasoning, answer.text, answer.finish) == ("one two", "three", "stop")
    assert (answer.completion_tokens, answer.is_whole) == (3, True)


@cases(*ECHOES, without=NO_TOOLS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tool", ["named", "required"])
async def test_a_tool_is_called(gateways: Side, dialect: str, backend: str, tool: str, *, stream: bool) -> None:
    """The call has its name and arguments, and the answer says that it ends with one."""
    answer = await gateways.ask(dialect, backend, "hi there", tool=tool, stream=stream)

    assert {name: json.loads(arguments) for name, arguments in answer.tools.items()} == {"say": {"text": "hi there"}}
    assert (answer.text, answer.finish, answer.is_whole) == ("", "tool_calls", True)


@cases(*ECHOES, without=NO_TOOLS)
async def test_tools_that_need_not_be_called_are_not(gateways: Side, dialect: str, backend: str) -> None:
    """With tool_choice none or auto, the echo answers in words."""
    answers = [await gateways.ask(dialect, backend, "hi there", tool=tool) for tool in ("auto", "none")]

    assert [(answer.text, answer.tools) for answer in answers] == [("hi there", {})] * 2


@cases(*ECHOES, without=NO_PROMPTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_word_has_a_status(
    gateways: Side, dialect: str, backend: str, *, stream: bool
) -> None:
    """Nothing was said, so the answer is an error and nothing else."""
    overloaded = await gateways.ask(dialect, backend, "echo:overloaded", stream=stream)
    rejected = await gateways.ask(dialect, backend, "echo:rejected", stream=stream)

    assert overloaded.status == (529 if dialect == "messages" else 503)
    assert rejected.status == 400
    assert "echo:rejected" in rejected.error


@cases(*ECHOES, without=NO_PROMPTS)
async def test_a_failure_after_the_first_word_never_looks_whole(gateways: Side, dialect: str, backend: str) -> None:
    """What came is there, then an error in the API's own form, and no end mark; a whole answer is an error only."""
    streamed = await gateways.ask(dialect, backend, "echo:error=2 one two three", stream=True)
    whole = await gateways.ask(dialect, backend, "echo:error=2 one two three")

    assert streamed.status == 200
    assert "echo:error" in streamed.error
    assert not streamed.is_whole
    assert whole.status == 502


@cases(*ECHOES, without=NO_PROMPTS)
async def test_a_client_that_leaves_frees_what_it_had(gateways: Side, dialect: str, backend: str) -> None:
    """Both gateways write the call off as cancelled, though the answer had not come to its end."""
    here = gateways.back if backend == "echo" else gateways.front
    before = [len(each.events("request", status=499)) for each in (gateways.back, here)]

    body = SPEECHES[dialect].body("echo:stall=2 one two three", {}) | {"model": backend, "stream": True}
    async with aiohttp.ClientSession() as http, http.post(here.url + SPEECHES[dialect].path, json=body) as response:
        await response.content.readany()

    for each, count in zip((gateways.back, here), before, strict=True):
        each.event("request", nth=count + 1, status=499)


@cases(*MODELS, without=NO_PROMPTS)
async def test_the_model_says_the_same_to_everybody(gateways: Side, dialect: str, backend: str) -> None:
    """A greedy answer depends on neither the API nor the way."""
    answer = await gateways.ask(dialect, backend, "The capital of France is", most=6, temperature=0, stream=True)
    direct = await gateways.ask(dialect, "smollm2", "The capital of France is", most=6, temperature=0)

    assert answer.text == direct.text
    assert answer.text
    assert (answer.prompt_tokens, answer.completion_tokens) == (direct.prompt_tokens, direct.completion_tokens)


@cases(*MODELS, without=NO_TOOLS)
async def test_the_model_is_made_to_call_a_tool(gateways: Side, dialect: str, backend: str) -> None:
    """A named tool is called with arguments that its schema allows."""
    answer = await gateways.ask(dialect, backend, "Say hello.", tool="named", temperature=0, most=60, stream=True)

    jsonschema.validate(json.loads(answer.tools["say"]), TOOL)
    assert answer.finish == "tool_calls"


@cases(*MODELS, without=NO_TOOLS)
async def test_the_model_keeps_to_a_schema(gateways: Side, dialect: str, backend: str) -> None:
    """An answer that must be of a schema is."""
    answer = await gateways.ask(dialect, backend, "Is it ok?", schema=True, temperature=0, most=40)

    jsonschema.validate(json.loads(answer.text), SCHEMA)


@pytest.mark.parametrize("backend", ["anthropic-echo", "anthropic-smollm2"])
async def test_prompts_cannot_be_said_in_anthropic_s_api(gateways: Side, backend: str) -> None:
    """A text completion on such a server is refused, and says why."""
    answer = await gateways.ask("completions", backend, "one two three")

    assert (answer.status, answer.error.split()[0]) == (400, "prompt")
    assert "Anthropic" in answer.error


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 2), ("logprobs", True), ("presence_penalty", 1), ("response_format", {"type": "json_object"})],
)
async def test_what_cannot_be_said_in_anthropic_s_api_is_refused(gateways: Side, field: str, value: object) -> None:
    """The client learns which field this model does not take, instead of an answer to another question."""
    body = SPEECHES["chat"].body("hi", {}) | {"model": "anthropic-echo", field: value}
    async with aiohttp.ClientSession() as http, http.post(f"{gateways.front.url}/v1/chat/completions", json=body) as r:
        error = (await r.json())["error"]

    assert (error["param"], error["code"]) == (field, "unsupported_value")
