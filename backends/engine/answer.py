"""One sequence's way from sampled tokens to text, and the call it belongs to.

Refuses to know blocks, steps and the wire.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from backends.api import Call, Delta, Finish, TokenLogprob, Usage
from backends.engine.sampler import Choice, Sampler
from backends.stops import StopText
from batching.scheduler import Sequence


class Detokenizer(Protocol):
    """Tokens of one answer to text, a token at a time; never ends on a part of a character."""

    def push(self, token_id: int) -> str:
        """Return the text this token completes."""
        ...

    def flush(self) -> str:
        """Return what was held back, as no more tokens will come."""
        ...


class Tokenizer(Protocol):
    """What the engine asks of a checkpoint's tokenizer. `prompt` is called from another thread than the rest."""

    @property
    def eos_ids(self) -> Collection[int]:
        """Tokens that end an answer."""
        ...

    def prompt(self, call: Call) -> list[list[int]]:
        """Return the tokens of each of the call's prompts; a chat is one prompt."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for."""
        ...

    def token_text(self, token_id: int) -> str:
        """Return a token's text, U+FFFD where it holds only a part of a character."""
        ...

    def detokenizer(self) -> Detokenizer:
        """Return a fresh one for one answer."""
        ...


@dataclass(slots=True, eq=False)
class Answering:
    """A call on its way: its answers, and the counts that its usage is made of."""

    call: Call
    prompt_tokens: int
    answers: list[Answer] = field(default_factory=list)
    unfinished: int = 0
    is_counted: bool = False

    def usage(self) -> Usage:
        """Count what was computed; every sampled token counts, those that end an answer unseen too."""
        leaders = [a for a in self.answers if a.sequence.leader is None]
        cached = sum(a.sequence.cached or 0 for a in leaders)
        return Usage(self.prompt_tokens, sum(a.sampled for a in self.answers), cached)


@dataclass(slots=True, eq=False)
class Answer:
    """Text of one sequence. `sampler` is None when the most likely token is always the one."""

    answering: Answering
    index: int
    sequence: Sequence
    limit: int
    sampler: Sampler | None
    tokenizer: Tokenizer
    text: Detokenizer
    stops: StopText
    sampled: int = 0
    untold: int = 0
    pending: list[TokenLogprob] = field(default_factory=list)

    @property
    def may_end(self) -> bool:
        """Whether a token that ends answers does end this one now."""
        call = self.answering.call
        return not call.ignore_eos and self.sampled >= call.min_tokens

    def take(self, choice: Choice) -> Delta | None:
        """Append a sampled token; return what there is to tell, None when text is held back."""
        is_end = choice.token in self.tokenizer.eos_ids and self.may_end
        self.sequence.tokens.append(choice.token)
        self.sampled += 1
        self.untold += 1
        shown = "" if is_end else self.stops.push(self.text.push(choice.token))
        if self.answering.call.logprobs is not None and not is_end:
            self.pending.append(self._logprob(choice))
        finish = self._finish(is_end=is_end)
        if finish is not None:
            self.answering.unfinished -= 1
            shown += self._rest()
        return self._tell(shown, finish)

    def _finish(self, *, is_end: bool) -> Finish | None:
        if is_end or self.stops.is_hit:
            return "stop"
        return "length" if self.sampled >= self.limit else None

    def _rest(self) -> str:
        """Return what was held back, unless a stop string ended the answer."""
        return self.stops.push(self.text.flush()) + self.stops.flush()

    def _tell(self, shown: str, finish: Finish | None) -> Delta | None:
        usage = self._usage()
        if not shown and finish is None and usage is None:
            return None
        logprobs = () if self.stops.held and finish is None else tuple(self.pending)
        if logprobs:
            self.pending.clear()
        tokens, self.untold = self.untold, 0
        return Delta(self.index, shown, tokens, finish, logprobs, usage=usage, stop=self.stops.hit)

    def _usage(self) -> Usage | None:
        """Usage goes with a call's first delta, for the prompt's counts, and with its last."""
        is_first, self.answering.is_counted = not self.answering.is_counted, True
        return self.answering.usage() if is_first or not self.answering.unfinished else None

    def _logprob(self, choice: Choice) -> TokenLogprob:
        text, utf8 = self.tokenizer.token_text, self.tokenizer.token_bytes
        top = tuple((text(token), tuple(utf8(token)), logprob) for token, logprob in choice.top)
        return TokenLogprob(text(choice.token), tuple(utf8(choice.token)), choice.logprob, top)
