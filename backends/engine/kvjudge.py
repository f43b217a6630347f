"""What a codec costs: the next tokens after a restored prefix against those after the prefix that was never stored.

Refuses to know how the codec works. Both are computed by the same runner, whose own 8-bit activations turn any change,
however small, into a KL divergence of about 0.001 on the embedded model: that is where the scale begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from backends.engine.kvchunk import CHUNK_TOKENS, KvCodec
from backends.engine.kvprofile import Measured
from backends.engine.kvstatistics import batch_of
from backends.engine.native import NativeRunner

Logs = NDArray[np.float32]
DECISIVE = 0.05
"""Between the probabilities of the two likeliest tokens; below it, either may be said."""


@dataclass(frozen=True, slots=True)
class _Window:
    prefix: NDArray[np.uint8]  # the cache's blocks as they were
    next: NDArray[np.int32]
    exact: Logs


class Judge:
    """Held-out windows, each a prefix of whole chunks and the text that follows it."""

    PREFIX: ClassVar[int] = 3 * CHUNK_TOKENS
    NEXT: ClassVar[int] = 256
    TOKENS: ClassVar[int] = PREFIX + NEXT

    def __init__(
        self, runner: NativeRunner, windows: NDArray[np.int64], progress: Callable[[str, float], None]
    ) -> None:
        self._runner, self._windows = runner, []
        for at, window in enumerate(windows):
            self._windows.append(self._read(window.astype(np.int32)))
            progress("unrestored", (at + 1) / len(windows))

    def measure(self, codec: KvCodec) -> Measured:
        """Encode and decode every prefix, and compare what follows."""
        sizes, rows = [], []
        for window in self._windows:
            sizes.append(self._restore(codec, window))
            rows.append(_compared(window, _log_softmax(self._follow(window.next))))
        kl, same, decisive, loss = (np.concatenate(part) for part in zip(*rows, strict=True))
        raw = len(self._windows) * self.PREFIX * self._runner.spec.kv_bytes_per_token
        return Measured(
            positions=len(kl),
            ratio=raw / sum(sizes),
            kl=float(kl.mean()),
            top1=float(same.mean()),
            decisive=float(same[decisive].mean()) if decisive.any() else 1.0,
            perplexity=float(np.exp(loss.mean())),
            perplexity_error=_error(loss.astype(np.float64).reshape(len(self._windows), -1).mean(1)),
        )

    def _read(self, window: NDArray[np.int32]) -> _Window:
        runner, following = self._runner, window[self.PREFIX :]
        runner.greedy(batch_of(window[: self.PREFIX], 0, runner.block_tokens, all_rows=False))
        prefix = runner.cache[:, : self.PREFIX // runner.block_tokens].copy()
        return _Window(prefix, following, _log_softmax(self._follow(following)))

    def _follow(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        return self._runner.forward(batch_of(tokens, self.PREFIX, self._runner.block_tokens, all_rows=True))

    def _restore(self, codec: KvCodec, window: _Window) -> int:
        """Put the prefix back by way of the codec; return how many bytes it was."""
        runner, size = self._runner, 0
        count = CHUNK_TOKENS // runner.block_tokens
        runner.cache[:, : window.prefix.shape[1]] = window.prefix
        for first in range(0, self.PREFIX, CHUNK_TOKENS):
            blocks = range(first // runner.block_tokens, first // runner.block_tokens + count)
            layers = codec.encode(runner, blocks, first)
            size += sum(map(len, layers))
            runner.cache[:, blocks.start : blocks.stop] = 0
            codec.decode(runner, layers, blocks, first)
        return size


def _compared(window: _Window, restored: Logs) -> tuple[NDArray[np.generic], ...]:
    """Compare row by row: KL, whether the likeliest token is the same, whether it matters, and what the text loses."""
    exact = window.exact
    chances = np.exp(exact)
    kl = (chances * (exact - restored)).sum(1)
    highest = np.partition(chances, -2, axis=1)[:, -2:]
    said = window.next[1:]
    at = np.arange(len(said))
    loss = np.zeros(len(exact))
    loss[:-1] = (exact[at, said] - restored[at, said]) * len(exact) / len(said)
    return kl, exact.argmax(1) == restored.argmax(1), highest[:, 1] - highest[:, 0] > DECISIVE, loss


def _error(losses: NDArray[np.float64]) -> float:
    """Return the standard error of a mean; of a perplexity's ratio too, as that is near 1."""
    return float(np.std(losses, ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else 0.0


def _log_softmax(logits: NDArray[np.float32]) -> Logs:
    shifted: Logs = logits - logits.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted
