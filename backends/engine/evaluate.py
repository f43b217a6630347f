"""How far a rounded model is from the original on held-out text. Refuses to know how it was rounded.

Accuracy is 1 / perplexity ratio. Beside it stand the mean KL divergence and how often the likeliest token is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from backends.engine.cores import parallel
from backends.engine.dense import Dense


@dataclass(frozen=True, slots=True)
class Quality:
    """Of a model against the original, on the same tokens."""

    perplexity: float
    ratio: float
    kl: float
    top1: float
    tokens: int

    @property
    def accuracy(self) -> float:
        """1 / perplexity ratio; may exceed 1 by chance where little was lost."""
        return 1 / self.ratio


@dataclass(frozen=True, slots=True)
class Reference:
    """The original model's head inputs on held-out windows, so that judging a candidate runs only the candidate."""

    model: Dense
    windows: Tensor
    hidden: Tensor

    def judge(self, candidate: Dense) -> Quality:
        """Compare a candidate with the original on every next token of the windows."""

        def compared(at: int) -> Tensor:
            return self._compared(at, candidate.logits(candidate.hidden(self.windows[at][None])[0, :-1]))

        return self._quality(parallel(compared, range(len(self.windows)), _silent).values())

    def judge_logits(self, logits_of: Callable[[Tensor], Tensor]) -> Quality:
        """Do the same with whatever gives the logits [T, vocabulary] of a window [T], one window after the other."""
        return self._quality(self._compared(at, logits_of(window)[:-1]) for at, window in enumerate(self.windows))

    def _compared(self, at: int, logits: Tensor) -> Tensor:
        original = self.model.logits(self.hidden[at, :-1]).log_softmax(-1)
        return _sums(original, logits.log_softmax(-1), self.windows[at, 1:])

    def _quality(self, parts: Iterable[Tensor]) -> Quality:
        sums = sum(parts, torch.zeros(4, dtype=torch.float64))
        tokens = self.windows.numel() - len(self.windows)
        nll, original_nll, kl, same = (sums / tokens).tolist()
        return Quality(math.exp(nll), math.exp(nll - original_nll), kl, same, tokens)


def reference_of(model: Dense, windows: Tensor) -> Reference:
    """Run the original once over the held-out windows."""
    hidden = parallel(lambda at: model.hidden(windows[at][None]), range(len(windows)), _silent)
    return Reference(model, windows, torch.cat(list(hidden.values())))


def _silent(_: float) -> None:
    """Follow progress without a word: judging takes seconds."""


def _sums(original: Tensor, rounded: Tensor, said: Tensor) -> Tensor:
    kl = functional.kl_div(rounded, original, reduction="sum", log_target=True)
    same = (original.argmax(-1) == rounded.argmax(-1)).sum()
    losses = (functional.nll_loss(logprobs, said, reduction="sum") for logprobs in (rounded, original))
    return torch.tensor([*map(float, losses), float(kl), float(same)], dtype=torch.float64)
