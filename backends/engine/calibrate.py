"""What calibration text says of each product: second moments of its inputs and how much its outputs matter.

Refuses to know schemes and bytes.

`inputs` is H = E[x xᵀ] [K, K]: an error D of W costs E|D x|² = tr(D H Dᵀ). `outputs` is E[g²] [N], where g is the
gradient of the whole window's loss on tokens that the model itself would say (the true Fisher information). To second
order, and taking outputs as independent, the mean KL divergence of a token is ½ Σ_n outputs[n] · (D H Dᵀ)[n, n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.engine.dense import Dense

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of one unit; of the embedding, which is looked up: how often each row is [N], and E[g²] of a row's values [K]."""

    inputs: Tensor
    outputs: Tensor


@torch.no_grad()
def input_moments(model: Dense, windows: Tensor, progress: Progress) -> dict[str, Tensor]:
    """Average x xᵀ of every unit's inputs over all windows; the embedding's are its rows' frequencies."""
    sums: dict[str, Tensor] = {}

    def tap(unit: str, x: Tensor, _: Tensor) -> None:
        if unit == "embed":
            counts = torch.bincount(x.flatten(), minlength=model.spec.vocabulary).float()
            sums[unit] = sums.get(unit, torch.zeros_like(counts)) + counts
            return
        rows = x.flatten(0, -2)
        if unit not in sums:
            sums[unit] = torch.zeros(rows.shape[1], rows.shape[1])
        sums[unit].addmm_(rows.T, rows)

    for done, window in enumerate(windows):
        hidden = model.hidden(window[None], tap)
        tap("head", hidden, hidden)
        progress((done + 1) / len(windows))
    return {unit: total / windows.numel() for unit, total in sums.items()}


def output_moments(model: Dense, windows: Tensor, seed: int, progress: Progress) -> dict[str, Tensor]:
    """Average g² of every unit's outputs, on next tokens drawn from the model's own distribution."""
    sums: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(seed)

    def tap(unit: str, _: Tensor, y: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            squares = gradient.flatten(0, -2).square().sum(0)
            sums[unit] = sums.get(unit, torch.zeros_like(squares)) + squares

        if not y.requires_grad:
            y.requires_grad_()  # only the embedding's rows: every later output depends on them
        y.register_hook(add)  # type: ignore[no-untyped-call]

    for done, window in enumerate(windows):
        with torch.enable_grad():
            logits = model.logits(model.hidden(window[None], tap), tap).flatten(0, 1)
            said = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
            torch.nn.functional.cross_entropy(logits, said, reduction="sum").backward()  # type: ignore[no-untyped-call]
        progress((done + 1) / len(windows))
    return {unit: total / windows.numel() for unit, total in sums.items()}
