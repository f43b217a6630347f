"""Thoughts apart from answers: the parser on text alone, and the engine with a real template and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.api import Call, Delta, Message, ResponseFormat, Sampling, Tool, ToolChoice
from backends.engine import Engine
from backends.engine.runner import Batch
from backends.engine.thoughts import CLOSE, OPEN, ThoughtParser
from backends.engine.tokens import Tokenizer
from backends.engine.weights import open_checkpoint
from batching.scheduler import Limits
from tests.tiny_checkpoint import write_tiny
from tests.toy_model import SPEC

SCRAPS = st.sampled_from([OPEN, CLOSE, "<", "</", "think", ">", "a", " ", "\n", "b c"])
END = 0  # the tiny checkpoint's
QWEN3 = (  # as Qwen3 has it: a model that shall not think is shown that it has thought already
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
R1 = QWEN3.replace("{% endif %}", "{% else %}<think>\n{% endif %}")  # opens thoughts in the prompt


def split(pieces: Sequence[str], *, is_open: bool = False) -> tuple[str, str]:
    """Push all pieces; tell what is thought and what is answer."""
    parser = ThoughtParser(is_open=is_open)
    told = [*map(parser.push, pieces), parser.finish()]
    return "".join(thought for thought, _ in told), "".join(text for _, text in told)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nhm, so\n</think>\n\nYes.", "hm, so", "Yes."),
        ("\n<think></think>Yes.", "", "Yes."),
        ("<think>cut sho", "cut sho", ""),
        ("<think>cut </thi", "cut </thi", ""),
        ("<think>a </ b < c</think>d", "a </ b < c", "d"),
        ("Write <think>x</think>.", "", "Write <think>x</think>."),
        ("  <thing>", "", "  <thing>"),
        ("<think>a</think> b <think>c</think>", "a", "b <think>c</think>"),
        ("<thi", "", "<thi"),
    ],
)
def test_only_what_comes_first_is_thought(text: str, thought: str, answer: str) -> None:
    """Thoughts begin an answer and end at the first closing tag or never; all else is said to the character."""
    assert split([text]) == split(list(text)) == (thought, answer)


@pytest.mark.parametrize("text", ["hm\n</think>\n\nYes.", "<think>hm</think>Yes."])
def test_a_prompt_can_have_opened_them(text: str) -> None:
    """Then the answer begins with thoughts, whether or not the model opens them again."""
    assert split([text], is_open=True) == split(list(text), is_open=True) == ("hm", "Yes.")


@given(st.lists(SCRAPS, max_size=12), st.lists(st.integers(0, 60)), st.booleans())
def test_any_split_gives_the_same_thoughts(scraps: list[str], cuts: list[int], is_open: bool) -> None:  # noqa: FBT001 - hypothesis passes it so
    """Neither thoughts nor answer depend on where the text was split."""
    text = "".join(scraps)
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})

    pieces = [text[start:end] for start, end in pairwise(ends)]

    assert split(pieces, is_open=is_open) == split([text], is_open=is_open)


@given(st.lists(SCRAPS, max_size=12))
def test_nothing_is_lost_but_tags_and_space(scraps: list[str]) -> None:
    """What was written is thought or said, and in that order."""
    text = "".join(scraps)

    thought, answer = split([text])

    assert "".join((thought + answer).split()) in {"".join(text.split()), _untagged(text)}


def _untagged(text: str) -> str:
    return "".join(text.split()).replace(OPEN, "", 1).replace(CLOSE, "", 1)


class Reciter:
    """A runner that says a script after its prompt, whatever the prompt is, and then ends."""

    kv_blocks, block_tokens = 256, 16
    spec = replace(SPEC, vocabulary=256)

    def __init__(self, tokens: list[int], prompt_tokens: int) -> None:
        self._tokens, self._prompt_tokens = tokens, prompt_tokens

    def greedy(self, batch: Batch) -> NDArray[np.int32]:
        """Return the next token of each sampled sequence."""
        said = [int(batch.positions[row]) + 1 - self._prompt_tokens for row in batch.sampled]
        return np.array([(*self._tokens, END)[min(number, len(self._tokens))] for number in said], np.int32)

    def forward(self, batch: Batch, best: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Make that token the likeliest."""
        likeliest = self.greedy(batch)
        if best is not None:
            best[:] = likeliest
        return np.eye(256, dtype=np.float32)[likeliest] * 9

    def copy_block(self, source: int, target: int) -> None:
        """Nothing is kept in blocks."""


def tokenizer(folder: Path, template: str) -> Tokenizer:
    """Give the tokenizer of a checkpoint with this template; each byte is a token."""
    write_tiny(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return open_checkpoint(str(folder)).tokenizer


def answered(tokens: Tokenizer, script: str, **fields: object) -> list[Delta]:
    """Let an engine say a script as its answer to a chat."""
    hello = (Message("user", "hi"),)
    given: dict[str, object] = {"messages": hello, "max_tokens": 99, "sampling": Sampling(temperature=0.0)} | fields
    call = Call("c", "m", **given)  # type: ignore[arg-type]
    recited, prompt = tokens.encode(script, special=False), tokens.prompt(call)[0]
    engine = Engine(Reciter(recited, len(prompt)), tokens, Limits(8, 64, 8), context_tokens=2048)
    engine.submit(engine.prepare(call), 0.0)
    deltas: list[Delta] = []
    while not engine.is_idle:
        deltas += [event for _, event in engine.step(0.0) if isinstance(event, Delta)]
    return deltas


def told(deltas: Sequence[Delta]) -> tuple[str, str]:
    """Join what was thought, and what was said."""
    return "".join(delta.reasoning for delta in deltas), "".join(delta.text for delta in deltas)


def test_an_engine_tells_thoughts_as_they_come(tmp_path: Path) -> None:
    """Thoughts come in pieces, before the answer; every token counts, the tags' too."""
    deltas = answered(tokenizer(tmp_path, QWEN3), "<think>\nhm\n</think>\n\nYes.")

    assert told(deltas) == ("hm", "Yes.")
    assert [delta.reasoning for delta in deltas if delta.reasoning] == ["h", "m"]
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == sum(delta.tokens for delta in deltas) == 26


def test_the_wish_not_to_think_reaches_the_template(tmp_path: Path) -> None:
    """The prompt says so in the template's own way, and what is said then is answer, to the first word."""
    tokens = tokenizer(tmp_path, R1)
    prompts = [tokens.prompt(Call("c", "m", (Message("user", "hi"),), thinking=wish))[0] for wish in (None, False)]
    texts = [b"".join(map(tokens.token_bytes, prompt)).decode() for prompt in prompts]

    assert texts == [
        "[user]hi[assistant]<think>\n",
        "[user]hi[assistant]<think>\n\n</think>\n\n",
    ]
    assert told(answered(tokens, "hm</think>Yes.")) == ("hm", "Yes.")
    assert told(answered(tokens, "Yes.", thinking=False)) == ("", "Yes.")


def test_a_model_that_was_not_taught_to_think_says_what_it_writes(tmp_path: Path) -> None:
    """Where neither template nor vocabulary knows the tags they are text, and so they are in a text completion."""
    script = "<think>a</think>b"

    plain = answered(tokenizer(tmp_path / "plain", "{{ messages[0].content }}"), script)
    completion = answered(tokenizer(tmp_path / "taught", QWEN3), script, messages=(), prompts=("hi",))

    assert told(plain) == told(completion) == ("", script)


def test_what_a_grammar_binds_is_not_split(tmp_path: Path) -> None:
    """A forced form leaves no room for thoughts, not even where the prompt has opened them."""
    tokens = tokenizer(tmp_path, R1)

    assert told(answered(tokens, '{"a":1}', response_format=ResponseFormat("json_object"))) == ("", '{"a":1}')


def test_tools_are_called_after_thoughts(tmp_path: Path) -> None:
    """A call within thoughts is a thought; one behind them is made."""
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    tools = {"tools": (Tool("f"),), "tool_choice": ToolChoice("auto")}
    deltas = answered(tokenizer(tmp_path, QWEN3), f"<think>{call}</think>{call}", max_tokens=200, **tools)

    assert told(deltas) == (call, "")
    assert [piece.name for delta in deltas for piece in delta.tool_calls if piece.name] == ["f"]
    assert deltas[-1].finish == "tool_calls"


def test_stop_strings_and_logprobs_are_the_answers(tmp_path: Path) -> None:
    """Thoughts are neither stopped nor explained."""
    script = "<think>a.b</think>c.d"
    deltas = answered(tokenizer(tmp_path, QWEN3), script, stop=(".",), logprobs=0)

    assert told(deltas) == ("a.b", "c")
    assert "".join(entry.text for delta in deltas for entry in delta.logprobs) == "c."
    assert deltas[-1].stop == "."


def test_an_answer_cut_while_it_thinks_has_no_text(tmp_path: Path) -> None:
    """All of it is thought, and it ends by its length."""
    deltas = answered(tokenizer(tmp_path, QWEN3), "<think>hm hm", max_tokens=9)

    assert (told(deltas), deltas[-1].finish) == (("hm", ""), "length")
