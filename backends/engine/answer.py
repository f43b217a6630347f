"""One sequence's way from sampled tokens to text, and the call it belongs to.

Refuses to know blocks, steps and the wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from backends.api import Call, Delta, Finish, TokenLogprob, ToolCallDelta, Usage
from backends.engine.forms import Spelling
from backends.engine.grammar import Mask
from backends.engine.sampler import Choice, Sampler
from backends.engine.thoughts import ThoughtParser
from backends.engine.toolcalls import Piece, ToolCallParser
from backends.stops import StopText
from batching.drafts import Drafter
from batching.scheduler import Sequence


class Detokenizer(Protocol):
    """Tokens of one answer to text, a token at a time; never ends on a part of a character."""

    def push(self, token_id: int) -> str:
        """Return the text this token completes."""
        ...

    def flush(self) -> str:
        """Return what was held back, as no more tokens will come."""
        ...


class Tokenizer(Spelling, Protocol):
    """What the engine asks of a checkpoint's tokenizer. Safe to use from several threads."""

    def prompt(self, call: Call) -> list[list[int]]:
        """Return the tokens of each of the call's prompts; a chat is one prompt."""
        ...

    def token_text(self, token_id: int) -> str:
        """Return a token's text, U+FFFD where it holds only a part of a character."""
        ...

    def detokenizer(self) -> Detokenizer:
        """Return a fresh one for one answer."""
        ...


@dataclass(frozen=True, slots=True)
class Restored:
    """The tokens of a prompt, from `start` to `end`, whose KV came from a tier.

    `guarded` names the blocks that nobody else is to take before the call had its turn.
    """

    start: int = 0
    end: int = 0
    tier: str = ""
    guarded: tuple[bytes, ...] = ()


NOTHING = Restored()


@dataclass(slots=True, eq=False)
class Answering:
    """A call on its way: its answers, and the counts that its usage is made of."""

    call: Call
    prompt_tokens: int
    answers: list[Answer] = field(default_factory=list)
    unfinished: int = 0
    is_counted: bool = False
    restored: Restored = NOTHING
    diverged: tuple[int, int] | None = None

    def usage(self) -> Usage:
        """Count what was computed; every sampled token counts, those that end an answer unseen too."""
        leaders = [a for a in self.answers if a.sequence.leader is None]
        cached = sum(a.sequence.cached or 0 for a in leaders)
        restored = max(0, min(cached, self.restored.end) - self.restored.start)
        return Usage(
            self.prompt_tokens,
            sum(a.sampled for a in self.answers),
            cached,
            restored,
            self.restored.tier if restored else "",
            self.diverged,
        )


@dataclass(slots=True, eq=False)
class Answer:
    """Thoughts, text and tool calls of one sequence.

    `sampler` is None when the most likely token is always the one, `mask` when any token may come, `calls` when no
    tool may be called, `drafter` when nothing shall be guessed, `thoughts` when no thought can follow. Stop strings and
    logprobs are for what is no thought.
    """

    answering: Answering
    index: int
    sequence: Sequence
    limit: int
    sampler: Sampler | None
    mask: Mask | None
    tokenizer: Tokenizer
    text: Detokenizer
    stops: StopText
    calls: ToolCallParser | None
    drafter: Drafter | None
    thoughts: ThoughtParser | None
    sampled: int = 0
    untold: int = 0
    pending: list[TokenLogprob] = field(default_factory=list)
    reasoning: str = ""  # thought, and not told yet

    @property
    def may_end(self) -> bool:
        """Whether a token that ends answers does end this one now; where a grammar lets it come, it does."""
        call = self.answering.call
        return self.mask is not None or (not call.ignore_eos and self.sampled >= call.min_tokens)

    def draft(self, *, rows: int, most: int) -> list[int]:
        """Guess what comes next, but for the last token that may come."""
        if self.drafter is None:
            return []
        return self.drafter.draft(self.sequence.tokens, rows=rows, most=min(most, self.limit - self.sampled - 1))

    def take(self, choice: Choice) -> list[Delta]:
        """Take a sampled token; return what there is to tell, nothing when text is held back."""
        is_end = choice.token in self.tokenizer.eos_ids and self.may_end
        self.sampled += 1
        self.untold += 1
        pieces = [] if is_end else self._said(self.stops.push(self._answered(self.text.push(choice.token))))
        if self.answering.call.logprobs is not None and not is_end:
            self._note_logprob(choice)
        is_whole = choice.ends or (self.calls is not None and self.calls.finished)
        finish = self._finish(is_whole=is_end or is_whole)
        if finish is None and not self.pending and self.answering.is_counted:
            return self._go_on(pieces)
        if finish is not None:
            self.answering.unfinished -= 1
            pieces += self._rest(is_cut=not (is_end or is_whole))
        return self._tell(pieces, finish)

    def _go_on(self, pieces: list[Piece]) -> list[Delta]:
        """Tell what nearly every token brings, a piece of text: a third of the time of `_tell`."""
        if not pieces and not self.reasoning:
            return []
        tokens, self.untold = self.untold, 0
        if len(pieces) == 1 and isinstance(pieces[0], str) and not self.reasoning:
            return [Delta(self.index, pieces[0], tokens)]
        (text, calls), *more = told(pieces)
        first = self._with_reasoning(Delta(self.index, text, tokens, tool_calls=calls))
        return [first, *(Delta(self.index, text, tool_calls=calls) for text, calls in more)]

    def _answered(self, text: str) -> str:
        """Put thoughts aside; return the rest."""
        if self.thoughts is None:
            return text
        reasoning, rest = self.thoughts.push(text)
        self.reasoning += reasoning
        if self.thoughts.is_over:
            self.thoughts = None
        return rest

    def _with_reasoning(self, first: Delta) -> Delta:
        """Let the first of some deltas tell what was thought before it."""
        reasoning, self.reasoning = self.reasoning, ""
        return replace(first, reasoning=reasoning) if reasoning else first

    def _said(self, text: str) -> list[Piece]:
        if self.calls is not None:
            return self.calls.push(text)
        return [text] if text else []

    def _finish(self, *, is_whole: bool) -> Finish | None:
        """Say why the answer ends: by its end token, its grammar, the one call that was wanted, or its limit."""
        if is_whole or self.stops.is_hit:
            is_called = self.calls is not None and self.calls.called
            return "tool_calls" if is_called and not self._is_half_called else "stop"
        return "length" if self.sampled >= self.limit else None

    @property
    def _is_half_called(self) -> bool:
        """Whether a stop string fell into a call: what is there of it must not look like a call to be made."""
        return self.stops.is_hit and self.calls is not None and self.calls.is_open

    def _rest(self, *, is_cut: bool) -> list[Piece]:
        """Return what was held back, unless a stop string ended the answer; a call that was not cut is made whole."""
        text = self._answered(self.text.flush())
        if self.thoughts is not None:
            reasoning, held = self.thoughts.finish()
            self.reasoning, text = self.reasoning + reasoning, text + held
        pieces = self._said(self.stops.push(text) + self.stops.flush())
        return pieces if self.calls is None else pieces + self.calls.finish(cut=is_cut)

    def _tell(self, pieces: list[Piece], finish: Finish | None) -> list[Delta]:
        usage = self._usage()
        if not pieces and not self.reasoning and finish is None and usage is None:
            return []
        *before, (text, calls) = told(pieces)
        is_held = self.stops.held or self.thoughts is not None
        logprobs = () if is_held and finish is None else tuple(self.pending)
        if logprobs:
            self.pending.clear()
        tokens, self.untold = self.untold, 0
        last = Delta(self.index, text, tokens, finish, logprobs, calls, usage, self.stops.hit)
        first, *more = [*(Delta(self.index, text, tool_calls=calls) for text, calls in before), last]
        return [self._with_reasoning(first), *more]

    def _usage(self) -> Usage | None:
        """Usage goes with a call's first delta, for the prompt's counts, and with its last."""
        is_first, self.answering.is_counted = not self.answering.is_counted, True
        return self.answering.usage() if is_first or not self.answering.unfinished else None

    def _note_logprob(self, choice: Choice) -> None:
        if self.thoughts is not None and self.thoughts.is_thinking:
            self.pending.clear()  # what looked like text has become the tag
        else:
            self.pending.append(self._logprob(choice))

    def _logprob(self, choice: Choice) -> TokenLogprob:
        text, utf8 = self.tokenizer.token_text, self.tokenizer.token_bytes
        top = tuple((text(token), tuple(utf8(token)), logprob) for token, logprob in choice.top)
        return TokenLogprob(text(choice.token), tuple(utf8(choice.token)), choice.logprob, top)


def told(pieces: Iterable[Piece]) -> list[tuple[str, tuple[ToolCallDelta, ...]]]:
    """Divide pieces into deltas: each tells its text before its tool calls, so text behind a call begins another."""
    deltas: list[tuple[str, tuple[ToolCallDelta, ...]]] = [("", ())]
    for piece in pieces:
        text, calls = deltas[-1]
        if not isinstance(piece, str):
            deltas[-1] = (text, (*calls, piece))
        elif calls:
            deltas.append((piece, ()))
        else:
            deltas[-1] = (text + piece, ())
    return deltas
