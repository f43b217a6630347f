"""Texts in, one vector of length 1 each out.

Refuses to know files and processes. A text that is too long is refused, not cut: half a text would have
another meaning and nobody would know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from backends.api import BackendError, Call, Embedding
from backends.engine.bert import Array, Bert

BATCH_TOKENS = 4096  # of one product, texts filled up to the longest included: beyond it nothing gets faster

Pooling = Literal["mean", "first"]


class Encoder:
    """A model with its tokenizer. One thread computes at a time."""

    def __init__(self, bert: Bert, tokenizer: tokenizers.Tokenizer, pooling: Pooling, context_tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._bert, self._tokenizer, self._pooling = bert, tokenizer, pooling
        self.context_tokens = context_tokens

    def tokens(self, call: Call) -> list[list[int]]:
        """Return the tokens of each prompt, between the marks of a text; tokens are taken as they are."""
        return [self._tokenizer.encode(p).ids if isinstance(p, str) else list(p) for p in call.prompts]

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones spelled out."""
        self._check_ids(token_ids, "tokens")
        said: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return said

    def embed(self, call: Call) -> Embedding:
        """Return the vectors of a call's prompts; raises BackendError (rejected)."""
        size = self._bert.spec.hidden
        if call.dimensions not in {None, size}:
            message = f"dimensions is {call.dimensions}; this model gives {size}, and fewer would not mean the same"
            raise BackendError("rejected", message, code="unsupported_value", param="dimensions")
        prompts = self.tokens(call)
        for i, prompt in enumerate(prompts):
            self._check(prompt, f"input[{i}]")
        vectors = self._vectors(prompts)
        return Embedding(tuple(v.astype("<f4").tobytes() for v in vectors), sum(map(len, prompts)))

    def _vectors(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Compute texts of like length together, so that little is filled up."""
        vectors = np.empty((len(prompts), self._bert.spec.hidden), np.float32)
        for batch in _batches(prompts):
            longest = max(len(prompts[i]) for i in batch)
            ids = np.zeros((len(batch), longest), np.int64)
            is_there = np.zeros(ids.shape, np.bool_)
            for row, i in enumerate(batch):
                ids[row, : len(prompts[i])] = prompts[i]
                is_there[row, : len(prompts[i])] = True
            vectors[batch] = self._pooled(self._bert.forward(ids, is_there), is_there)
        return vectors

    def _pooled(self, rows: Array, is_there: NDArray[np.bool_]) -> Array:
        """Return one vector of length 1 a text."""
        mask = is_there[:, :, None].astype(np.float32)
        one = rows[:, 0] if self._pooling == "first" else (rows * mask).sum(1) / mask.sum(1)
        unit: Array = one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), np.float32(1e-12))
        return unit

    def _check(self, prompt: Sequence[int], param: str) -> None:
        self._check_ids(prompt, param)
        if not prompt:
            raise BackendError("rejected", f"{param} is empty; send at least one token", param=param)
        if len(prompt) > self.context_tokens:
            raise BackendError(
                "rejected",
                f"{param} has {len(prompt)} tokens, but the model's context is {self.context_tokens}; split it",
                code="context_length_exceeded",
                param=param,
            )

    def _check_ids(self, token_ids: Sequence[int], param: str) -> None:
        vocabulary = self._bert.spec.vocabulary
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocabulary:
            message = f"{param}: token ids go from 0 to {vocabulary - 1} in this model"
            raise BackendError("rejected", message, param=param)


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the numbers of texts to compute together, the shortest first."""
    batch: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda each: len(prompts[each])):
        if batch and (len(batch) + 1) * len(prompts[i]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
