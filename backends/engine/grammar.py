"""Grammars compiled for a vocabulary, and the mask that keeps each next token inside one; llguidance does the parsing.

Refuses to know what a grammar is for. Compiling belongs off the step thread, a sequence's mask to the step thread.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.engine.grammar_source import Source

if TYPE_CHECKING:
    import llguidance

MAX_GRAMMAR_BYTES = 4 << 20


class GrammarError(Exception):
    """A format that cannot be enforced: `param` names the field of the call that asked for it."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.message, self.param = message, param


class Vocabulary(Protocol):
    """What a grammar must know of the model's tokens; `tokens.Tokenizer` is one."""

    @property
    def size(self) -> int:
        """How many token ids there are."""
        ...

    @property
    def eos_ids(self) -> Collection[int]:
        """Tokens that end an answer."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Say whether a token is a control token."""
        ...

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the text's tokens as the model was taught them."""
        ...


class Grammars:
    """Compiles grammars for one vocabulary and remembers the last `capacity`. Safe to use from several threads.

    Building it reads the whole vocabulary (0.3 s for 49,152 tokens).
    """

    def __init__(self, vocabulary: Vocabulary, *, capacity: int = 64) -> None:
        import llguidance  # noqa: PLC0415 - 60 ms that a worker's start need not wait for

        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Wrapped(vocabulary)),
            n_vocab=vocabulary.size,
            eos_token=sorted(vocabulary.eos_ids),
        )
        self._capacity, self._lock = capacity, Lock()
        self._compiled: OrderedDict[bytes, llguidance.LLMatcher] = OrderedDict()
        self._scratch = Scratch(vocabulary.size)

    def compile(self, source: Source) -> Mask | None:
        """Return the mask of a new sequence. Takes milliseconds at first, microseconds again; bounded for any input.

        Raises GrammarError with the parser's own words; None for an optional grammar that does not compile.
        """
        try:
            return Mask(self._matcher(source).deep_copy(), self._scratch, source.param)
        except GrammarError:
            if source.optional:
                return None
            raise

    def _matcher(self, source: Source) -> llguidance.LLMatcher:
        key = sha256(source.lark.encode()).digest()
        with self._lock:
            matcher = self._compiled.get(key)
            if matcher is not None:
                self._compiled.move_to_end(key)
                return matcher
        matcher = self._build(source)
        with self._lock:
            self._compiled[key] = matcher
            while len(self._compiled) > self._capacity:
                self._compiled.popitem(last=False)
        return matcher

    def _build(self, source: Source) -> llguidance.LLMatcher:
        size = len(source.lark.encode())
        if size > MAX_GRAMMAR_BYTES:
            raise GrammarError(f"it makes {size} bytes of grammar; at most {MAX_GRAMMAR_BYTES}", param=source.param)
        import llguidance  # noqa: PLC0415 - loaded long before

        matcher = llguidance.LLMatcher(self._tokenizer, source.lark, log_level=0, limits=_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask builds most of the lexer: pay for it here, not in a step
        if matcher.is_error():
            raise GrammarError(_brief(matcher.get_error()), param=source.param)
        return matcher


class Mask:
    """The tokens one sequence may take next; in order: fill, sample, accept.

    Used by the step thread alone: the masks of one `Grammars` share their memory.
    """

    def __init__(self, matcher: llguidance.LLMatcher, scratch: Scratch, param: str) -> None:
        self._matcher, self._scratch, self._param = matcher, scratch, param

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing may follow; the sequence then ends with "stop"."""
        return self._matcher.is_stopped()

    def copy(self) -> Mask:
        """Return the mask of another sequence of the same call, which has accepted the same tokens."""
        return Mask(self._matcher.deep_copy(), self._scratch, self._param)

    def fill(self, logits: NDArray[np.float32]) -> None:
        """Set the logits [vocabulary] of forbidden tokens to -inf; GrammarError when the grammar became too complex."""
        bits = self._scratch.bits
        self._matcher.unsafe_compute_mask_ptr(self._scratch.address, bits.nbytes)
        if self._matcher.is_error():
            raise GrammarError(_brief(self._matcher.get_error()), param=self._param)
        self._scratch.apply(logits)

    def accept(self, token_id: int) -> None:
        """Take the sampled token; GrammarError when it was forbidden."""
        if not self._matcher.consume_token(token_id):
            raise GrammarError(_brief(self._matcher.get_error()), param=self._param)

    def forced(self) -> list[int]:
        """Tokens that must come next, as the model would have written them; empty where there is a choice."""
        return self._matcher.compute_ff_tokens()


class Scratch:
    """One mask as bits, and the table that turns each byte of it into eight penalties to add.

    Adding 0 or -inf from a table costs 12 µs a row of 49,152, whatever the mask; unpacking bits and writing where
    they are clear costs 7 to 115, most for mixed masks.
    """

    def __init__(self, size: int) -> None:
        self.bits = np.zeros((size + 31) // 32 * 4, np.uint8)
        self.address = self.bits.ctypes.data
        self._penalties = np.empty((self.bits.size, 8), np.float32)
        allowed = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._table = np.where(allowed == 1, np.float32(0), np.float32(-np.inf))
        self._size = size

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Add the penalties; ids beyond the vocabulary are padding and forbidden."""
        np.take(self._table, self.bits, axis=0, out=self._penalties, mode="clip")
        known = logits[: self._size]
        known += self._penalties.reshape(-1)[: known.size]
        logits[self._size :] = -np.inf


class _Wrapped:
    """A vocabulary as llguidance wants it: control tokens are marked by a byte that no text holds."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = range(vocabulary.size)
        self.eos_token_id = min(vocabulary.eos_ids)
        self.special_token_ids = [i for i in ids if vocabulary.is_special(i)]
        self.tokens = [(b"\xff" if vocabulary.is_special(i) else b"") + vocabulary.token_bytes(i) for i in ids]
        self._vocabulary = vocabulary

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.encode(text, special=False)


def _limits() -> llguidance.LLParserLimits:
    """Tens of milliseconds a step and of megabytes a grammar, for any input; beyond that the grammar is refused."""
    import llguidance  # noqa: PLC0415 - loaded long before

    return llguidance.LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=200_000,
        step_lexer_fuel=30_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _brief(message: str) -> str:
    """Keep the parser's reason and leave out the grammar that it repeats."""
    first, *rest = message.splitlines() or [""]
    reason = next((line for line in rest if line.startswith("error: ")), "")
    return re.sub(r"^at \d+\(\d+\): ", "", f"{first} {reason}".strip())[:500]
