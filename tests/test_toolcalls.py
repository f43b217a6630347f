"""Tool calls in generated text: every family's form is understood, and nothing is called that was not written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Message, Tool, ToolCall, ToolCallDelta
from backends.engine.toolcalls import HERMES, JSON, LLAMA3, Syntax, ToolCallParser, syntax_of
from backends.engine.toolprompt import spelled_out, tools_prompt

WEATHER = Tool("get_weather", "Tell the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
TOOLS = (WEATHER, Tool("now"))
PARIS = '{"city": "Paris", "days": [1, 2]}'
CALL = f'{{"name": "get_weather", "arguments": {PARIS}}}'
NOW = '{"name": "now", "arguments": {}}'
Read = tuple[str, list[tuple[str | None, str | None, str]]]


def read(*pieces: str, cut: bool = False, parallel: bool = True) -> Read:
    """Give the text and the calls as (id, name, arguments) of an answer that came in these pieces."""
    parser = ToolCallParser(TOOLS, lambda index: f"call_{index}", parallel=parallel)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish(cut=cut)
    calls: dict[int, tuple[str | None, str | None, str]] = {}
    for delta in (part for part in parts if isinstance(part, ToolCallDelta)):
        call_id, name, arguments = calls.get(delta.index, (delta.id, delta.name, ""))
        calls[delta.index] = (call_id, name, arguments + delta.arguments)
    return "".join(part for part in parts if isinstance(part, str)), list(calls.values())


def called(*calls: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Give calls with the ids that `read` makes."""
    return [(f"call_{index}", name, arguments) for index, (name, arguments) in enumerate(calls)]


ONE_CALL = {
    "hermes": f"<tool_call>\n{CALL}\n</tool_call>",
    "hermes without its closing tag": f"<tool_call>\n{CALL}",
    "llama object": CALL.replace("arguments", "parameters"),
    "llama python tag": f"<|python_tag|>{CALL}<|eom_id|>",
    "llama function tag": f"<function=get_weather>{PARIS}</function>",
    "openai object": f'{{"type": "function", "function": {CALL}}}',
    "arguments as text": f'{{"name": "get_weather", "arguments": {json.dumps(PARIS)}}}',
    "arguments first": f'{{"arguments": {PARIS}, "name": "get_weather"}}',
    "array of one": f"[{CALL}]",
    "code fence": f"```json\n{CALL}\n```",
    "unknown wrapper": f"<tools>{CALL}</tools>",
    "indented": f"  \n  {CALL}  \n",
    "a key nobody knows": CALL[:-1] + ', "thought": {"x": ["}"]}}',
}


@pytest.mark.parametrize("text", ONE_CALL.values(), ids=ONE_CALL)
def test_every_form_of_a_call_is_understood(text: str) -> None:
    """Llama, Qwen, Hermes and plain JSON forms give the same call and leave no text behind."""
    assert read(text) == ("", called(("get_weather", PARIS)))


SEVERAL_CALLS = {
    "hermes": f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{NOW}\n</tool_call>",
    "array": f"[{CALL}, {NOW}]",
    "llama separator": f"{CALL}; {NOW}",
    "fences": f"```json\n{CALL}\n```\n```json\n{NOW}\n```",
}


@pytest.mark.parametrize("text", SEVERAL_CALLS.values(), ids=SEVERAL_CALLS)
def test_parallel_calls_are_all_found(text: str) -> None:
    """Several calls in one answer get indexes and ids in the order they were written."""
    assert read(text) == ("", called(("get_weather", PARIS), ("now", "{}")))


def test_text_around_calls_is_kept() -> None:
    """What the model says before and after its calls reaches the client."""
    assert read(f"Let me look.\n<tool_call>{NOW}</tool_call>\nDone.") == ("Let me look.\nDone.", called(("now", "{}")))


REPAIRED = {
    "the call's brace is missing": (f'<tool_call>{{"name": "get_weather", "arguments": {PARIS}</tool_call>', PARIS),
    "both braces are missing": ('{"name": "now", "arguments": {"a": [1, 2]', '{"a": [1, 2]}'),
    "a bracket is missing": ('{"name": "now", "arguments": {"a": [1, 2}}', '{"a": [1, 2]}'),
    "one brace too many": ('{"name": "now", "arguments": {"a": 1}}}', '{"a": 1}'),
    "a comma too many": ('{"name": "now", "arguments": {"a": 1,}}', '{"a": 1}'),
    "a quote is missing": ('{"name": "now", "arguments": {"a": "b', '{"a": "b"}'),
    "half an escape": ('{"name": "now", "arguments": {"a": "b\\u00', '{"a": "b"}'),
    "a key without a value": ('{"name": "now", "arguments": {"a": 1, "b":', '{"a": 1}'),
    "half a literal": ('{"name": "now", "arguments": {"a": 1, "b": tr', '{"a": 1}'),
    "a whole number": ('{"name": "now", "arguments": {"a": 12', '{"a": 12}'),
    "no arguments": ('<tool_call>{"name": "now"}</tool_call>', "{}"),
    "null arguments": ('{"name": "now", "arguments": null}', "{}"),
}


@pytest.mark.parametrize(("text", "arguments"), REPAIRED.values(), ids=REPAIRED)
def test_an_unbalanced_call_is_closed(text: str, arguments: str) -> None:
    """Repair closes what was left open and leaves out what cannot be closed; it adds no character of an argument."""
    _, calls = read(text)

    assert [call[2] for call in calls] == [arguments]


def test_trailing_text_after_a_bare_call_is_text() -> None:
    """A model that explains itself after the JSON is understood."""
    assert read(f"{NOW} I hope this helps") == (" I hope this helps", called(("now", "{}")))


@pytest.mark.parametrize(
    "text", ['{"name": "now", "arguments": {"path": "/tmp/x', '{"name": "now", "arguments": {"n": 1']
)
def test_a_call_cut_by_a_token_limit_is_not_completed(text: str) -> None:
    """Half a command never looks like a whole one: its arguments stay unparsable."""
    _, [(_, _, arguments)] = read(text, cut=True)

    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)


KEPT_AS_TEXT = {
    "an unknown tool": '<tool_call>{"name": "rm", "arguments": {"path": "/"}}</tool_call>',
    "an answer in JSON": '{"name": "Ada", "age": 36}',
    "nested data": '{"answer": {"name": "now", "arguments": {}}}',
    "a call in the middle of a line": f"write {CALL} to call",
    "markup": "<b>bold</b> and a < b, {x}, ``` and\n```python\nprint({})\n```\n",
    "only an opener": "<tool_call>",
    "a name alone": '{"name": "now"',
    "python's quotes": "{'name': 'now', 'arguments': {}}",
    "arguments that are no object": '{"name": "now", "arguments": [1]}',
    "space": " \n\n ",
}


@pytest.mark.parametrize("text", KEPT_AS_TEXT.values(), ids=KEPT_AS_TEXT)
def test_what_is_no_call_stays_text_to_the_character(text: str) -> None:
    """Nothing is called, and nothing is lost, when an answer only resembles a call."""
    assert read(text) == (text, [])


def test_arguments_stream_as_they_arrive() -> None:
    """Once the name is known each push passes on what it can."""
    parser = ToolCallParser(TOOLS, str)
    parser.push('<tool_call>{"name": "get_weather", "arguments": {"city": "Pa')

    assert parser.push("ris, ") == [ToolCallDelta(0, arguments="ris, ")]


def test_text_that_cannot_begin_a_call_is_not_held_back() -> None:
    """Ordinary words pass at once; only space and what may be a tag wait."""
    parser = ToolCallParser(TOOLS, str)

    assert parser.push("Hello there <") == ["Hello there"]
    assert parser.push("3") == [" <3"]


def test_without_parallel_calls_the_first_one_ends_the_answer() -> None:
    """A second call is dropped, and the engine is told that it may stop."""
    parser = ToolCallParser(TOOLS, str, parallel=False)
    parser.push(f"<tool_call>{NOW}")

    assert parser.finished
    assert read(*SEVERAL_CALLS["hermes"], parallel=False) == ("", called(("get_weather", PARIS)))


EXAMPLES = [
    *ONE_CALL.values(),
    *SEVERAL_CALLS.values(),
    *(text for text, _ in REPAIRED.values()),
    *KEPT_AS_TEXT.values(),
]
FRAGMENTS = ["<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "\\", CALL, NOW, '"name": "now"', "arguments", ":"]
FRAGMENTS += [
    ",",
    " ",
    "\n",
    "```",
    "json",
    "<function=now>",
    "<|python_tag|>",
    "<|eom_id|>",
    "word",
    "é",
    "'",
    "1",
    "<",
    ">",
    ";",
]
MIXED = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@given(st.data(), st.one_of(st.sampled_from(EXAMPLES), MIXED))
def test_any_split_of_the_text_gives_the_same_answer(data: st.DataObject, text: str) -> None:
    """Text, calls, ids and arguments do not depend on where tokens begin and end."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert read(*pieces) == read(*text) == read(text)
    assert read(*pieces, cut=True) == read(*text, cut=True) == read(text, cut=True)


@given(MIXED)
def test_no_character_is_invented(text: str) -> None:
    """Every character of a call was written by the model, but for closers and the braces of no arguments."""
    _, calls = read(text)

    for _, name, arguments in calls:
        assert name is not None
        assert name in text
        assert set(arguments) - set(text) <= set('{}]"')


SCALARS = st.text(max_size=8) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner), max_leaves=6
)


@given(st.dictionaries(st.text(max_size=4), NESTED, max_size=4))
def test_well_formed_arguments_pass_unchanged(arguments: dict[str, object]) -> None:
    """Whatever JSON the model writes as arguments, the client reads the same."""
    written = json.dumps(arguments)

    assert read(f'<tool_call>{{"name": "now", "arguments": {written}}}</tool_call>') == ("", called(("now", written)))


TEMPLATES = {
    "{{ messages }}": HERMES,
    "{% if tools %}<tool_call>{% endif %}": HERMES,
    "{% if tools %}<|python_tag|>{% endif %}": LLAMA3,
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}": JSON,
}


@pytest.mark.parametrize(("template", "syntax"), TEMPLATES.items())
def test_the_template_tells_the_syntax(template: str, syntax: Syntax) -> None:
    """Calls are asked for in the form that the checkpoint was taught, in Hermes' when it was taught none."""
    assert syntax_of(template) == syntax


def test_tools_reach_a_model_whose_template_knows_none() -> None:
    """Tools join the system message; calls and results become plain turns that the parser's form reads back."""
    history = [
        Message("system", "Be brief."),
        Message("user", "Weather?"),
        Message("assistant", tool_calls=(ToolCall("a", "get_weather", PARIS),)),
        Message("tool", "sunny", tool_call_id="a"),
    ]

    system, user, assistant, result = spelled_out(history, TOOLS)

    assert system == Message("system", f"Be brief.\n\n{tools_prompt(TOOLS)}")
    assert user == history[1]
    assert read(assistant.text) == ("", called(("get_weather", PARIS)))
    assert result == Message("user", "<tool_response>\nsunny\n</tool_response>")
