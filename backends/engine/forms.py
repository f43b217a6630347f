"""What a model's answers can be held to and read as: grammars over its vocabulary, thoughts and calls in its words.

Refuses to know steps, blocks and sampling. All but `Mask` is used beside the step thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from threading import Lock
from typing import Protocol

from backends.api import BackendError, Call
from backends.engine.grammar import GrammarError, Grammars, Mask, Vocabulary
from backends.engine.grammar_source import Source, source_of
from backends.engine.thoughts import ThoughtParser
from backends.engine.toolcalls import Syntax, ToolCallParser


class Spelling(Vocabulary, Protocol):
    """A vocabulary, and how its model was taught to think and to write a tool call."""

    @property
    def syntax(self) -> Syntax:
        """The form in which a call is forced."""
        ...

    def thoughts(self, prompt: Sequence[int]) -> ThoughtParser | None:
        """Return what finds thoughts in an answer to `prompt`; None for a model that was not taught to think."""
        ...


class Forms:
    """The forms of one model. Safe to use from several threads."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._lock = Lock()
        self._grammars: Grammars | None = None

    def warm(self) -> Grammars:
        """Read the vocabulary, once; it takes tenths of a second and belongs before the first call that needs it."""
        with self._lock:
            if self._grammars is None:
                self._grammars = Grammars(self._spelling)
            return self._grammars

    def mask(self, call: Call) -> Mask | None:
        """Return what binds the answers of a call, to be copied for each; BackendError when that is not possible."""
        try:
            source = source_of(call, self._spelling.syntax)
            if source is None or is_moot(source, call):
                return None
            return self.warm().compile(source)
        except GrammarError as exc:
            message = f"{exc.param} cannot be enforced: {exc.message}"
            raise BackendError("rejected", message, code="invalid_value", param=exc.param) from exc
        except RecursionError as exc:
            param = "tools" if call.tools else "response_format"
            raise BackendError("rejected", f"{param} is nested too deeply", code="invalid_value", param=param) from exc


def is_moot(source: Source, call: Call) -> bool:
    """Whether a grammar that only helps would get in the way of an answer that must go on past its end."""
    return source.optional and (call.ignore_eos or call.min_tokens > 0)


def parser_for(call: Call, index: int) -> ToolCallParser | None:
    """Return what finds tool calls in the call's answer `index`; None when the answer may hold none."""
    if not call.tools or call.tool_choice.mode == "none":
        return None
    return ToolCallParser(
        call.tools,
        partial(tool_call_id, call.id, index),
        parallel=call.parallel_tool_calls,
        forced=call.tool_choice.mode == "required",
    )


def thoughts_in(call: Call, prompt: Sequence[int], spelling: Spelling) -> ThoughtParser | None:
    """Return what finds thoughts in the call's answers; None where a grammar leaves no room for any."""
    is_bound = call.tool_choice.mode == "required" or call.response_format.kind != "text"
    return None if call.prompts or is_bound else spelling.thoughts(prompt)


def tool_call_id(call_id: str, index: int, number: int) -> str:
    """Name a tool call so that every replica which continues the answer gives it the same name."""
    return "call_" + blake2b(f"{call_id}/{index}/{number}".encode(), digest_size=12).hexdigest()
