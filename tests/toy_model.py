"""A model small enough to know by heart: its logits are a hash of the tokens it reads back from its own KV blocks.

A wrong block table, a block written while shared or a leaked one therefore gives wrong tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from backends.api import BackendError, Call, Delta, Message, Sampling
from backends.engine import Engine
from backends.engine.runner import Batch, ModelSpec, best_of
from backends.engine.thoughts import ThoughtParser
from backends.engine.toolcalls import HERMES
from batching.scheduler import Limits

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?01234"
POISON, EOS, VOCABULARY = 62, 63, 64
CONTEXT = 48
SPEC = ModelSpec("toy", 1, 1, 1, 1, 1, 1, VOCABULARY, CONTEXT, 1e-5, 1e4, tied_head=True)


class ToyRunner:
    """A hash of everything before a token is its logits; a prompt with POISON makes them NaN.

    With a `habit` it likes to go round in circles, so that what it says can often be guessed.
    """

    def __init__(self, kv_blocks: int = 64, block_tokens: int = 4, habit: float = 0.0) -> None:
        self.spec, self.kv_blocks, self.block_tokens = SPEC, kv_blocks, block_tokens
        self._kv = np.full((kv_blocks, block_tokens), -1, np.int64)
        self._habit = habit
        self.is_out_of_order = False
        self.widest = 0

    def forward(self, batch: Batch, best: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Write the step's tokens, then read each sampled sequence back."""
        if self.is_out_of_order:
            raise RuntimeError("out of order")
        self.widest = max(self.widest, len(batch.lengths))
        logits = []
        for s, (start, end) in enumerate(zip(batch.starts, batch.starts[1:], strict=False)):
            for token, position in zip(batch.tokens[start:end], batch.positions[start:end], strict=True):
                block = batch.blocks[s, position // self.block_tokens]
                assert block >= 0
                self._kv[block, position % self.block_tokens] = token
            assert batch.positions[end - 1] + 1 == batch.lengths[s]
        for row in batch.sampled:
            s = int(np.searchsorted(batch.starts, row, side="right")) - 1
            logits.append(self._logits(self._kv[batch.blocks[s]].ravel()[: batch.positions[row] + 1]))
        rows = np.array(logits, np.float32).reshape(-1, VOCABULARY)
        if best is not None:
            best[:] = best_of(rows)
        return rows

    def greedy(self, batch: Batch) -> NDArray[np.int32]:
        """Return the likeliest token of each sampled sequence."""
        return best_of(self.forward(batch))

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block."""
        self._kv[target] = self._kv[source]

    def write(self, block: int, at: int, token: int) -> None:
        """Put a token into the cache, as a restore does."""
        self._kv[block, at] = token

    def _logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        assert (tokens >= 0).all()
        if POISON in tokens:
            return np.full(VOCABULARY, np.nan, np.float32)
        seed = 7
        for token in tokens:
            seed = (seed * 1_000_003 + int(token) + 1) % (1 << 61)
        logits = np.random.default_rng(seed).normal(scale=3, size=VOCABULARY).astype(np.float32)
        logits[(tokens[-1] + 1) % 3] += self._habit
        logits[POISON] = -np.inf
        return logits


class ToyDetokenizer:
    """Every token is a letter."""

    def push(self, token_id: int) -> str:
        """Return the letter."""
        return LETTERS[token_id : token_id + 1]

    def flush(self) -> str:
        """Nothing is ever held back."""
        return ""


class ToyTokenizer:
    """A letter is a token; messages are joined without a template."""

    eos_ids = frozenset({EOS})
    size = VOCABULARY
    syntax = HERMES

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the letters' numbers."""
        del special
        return [LETTERS.index(letter) for letter in text]

    def is_special(self, token_id: int) -> bool:
        """Say so of the two that are no letters."""
        return token_id >= POISON

    def thoughts(self, prompt: Sequence[int]) -> ThoughtParser | None:
        """Return None, as it never thinks."""
        del prompt

    def prompt(self, call: Call) -> list[list[int]]:
        """Return the letters' numbers."""
        prompts: Iterable[str | tuple[int, ...]] = call.prompts or ["".join(m.text for m in call.messages)]
        return [[LETTERS.index(c) for c in p] if isinstance(p, str) else list(p) for p in prompts]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the letter's byte."""
        return LETTERS[token_id].encode() if token_id < len(LETTERS) else b""

    def token_text(self, token_id: int) -> str:
        """Return the letter."""
        return self.token_bytes(token_id).decode()

    def detokenizer(self) -> ToyDetokenizer:
        """Return one for one answer."""
        return ToyDetokenizer()


LIMITS = Limits(max_batch=8, token_budget=32, max_waiting=64, max_draft=4)


def toy_engine(*, kv_blocks: int = 64, habit: float = 0.0, **limits: int) -> Engine:
    """Make an engine over the toy model, with blocks of 4 tokens and a context of 48."""
    return Engine(ToyRunner(kv_blocks, habit=habit), ToyTokenizer(), replace(LIMITS, **limits), context_tokens=CONTEXT)


def toy_call(text: str = "hello", call_id: str = "call", *, temperature: float = 0.0, **settings: object) -> Call:
    """Make a chat call of one user message; greedy, and 8 tokens unless told otherwise."""
    sampling = settings.pop("sampling", Sampling(temperature=temperature, seed=5))
    return Call(call_id, "toy", (Message("user", text),), **{"max_tokens": 8, "sampling": sampling, **settings})  # type: ignore[arg-type]


class Heard:
    """What came out of an engine, by call."""

    def __init__(self) -> None:
        self.deltas: dict[str, list[Delta]] = {}
        self.errors: dict[str, BackendError] = {}

    def add(self, events: Iterable[tuple[str, Delta | BackendError]]) -> None:
        """Note the events of a step."""
        for call_id, event in events:
            if isinstance(event, Delta):
                self.deltas.setdefault(call_id, []).append(event)
            else:
                self.errors[call_id] = event

    def text(self, call_id: str, index: int = 0) -> str:
        """Return the text of an answer so far."""
        return "".join(delta.text for delta in self.deltas.get(call_id, []) if delta.index == index)


def start(engine: Engine, *calls: Call, now: float = 0.0) -> None:
    """Submit calls."""
    for call in calls:
        engine.submit(engine.prepare(call), now)


def finish(engine: Engine, heard: Heard | None = None) -> Heard:
    """Step until nothing is left to do."""
    heard = heard or Heard()
    while not engine.is_idle:
        heard.add(engine.step(0.0))
    return heard


def answer(call: Call, *, habit: float = 0.0) -> Heard:
    """Answer one call alone, without guesses."""
    engine = toy_engine(habit=habit, max_draft=0)
    start(engine, call)
    return finish(engine)
