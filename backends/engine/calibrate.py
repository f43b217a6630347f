"""What calibration text says of each product: second moments of its inputs and how much its outputs matter.

Refuses to know schemes and bytes.

`inputs` is H = E[x xᵀ] [K, K]: an error D of W costs E|D x|² = tr(D H Dᵀ). `outputs` is E[g²] [N], where g is the
gradient of the whole window's loss on tokens that the model itself would say (the true Fisher information). To second
order, and taking outputs as independent, the mean KL divergence of a token is ½ Σ_n outputs[n] · (D H Dᵀ)[n, n].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from backends.engine.cores import Progress, parallel
from backends.engine.dense import Dense


@dataclass(frozen=True, slots=True)
class Moments:
    """Of one unit; of the embedding, which is looked up: how often each row is [N], and E[g²] of a row's values [K]."""

    inputs: Tensor
    outputs: Tensor


def input_moments(model: Dense, windows: Tensor, progress: Progress) -> dict[str, Tensor]:
    """Average x xᵀ of every unit's inputs over all windows; the embedding's are its rows' frequencies."""
    cores, done = torch.get_num_threads(), count(1)

    def summed(core: int) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for window in windows[core::cores]:
            _add_inputs(sums, model, window[None])
            progress(next(done) / len(windows))
        return sums

    return _mean(parallel(summed, range(cores), lambda _: None).values(), windows.numel())


def _add_inputs(sums: dict[str, Tensor], model: Dense, window: Tensor) -> None:
    def tap(unit: str, x: Tensor, _: Tensor) -> None:
        if unit == "embed":
            counts = torch.bincount(x.flatten(), minlength=model.spec.vocabulary).float()
            sums[unit] = sums.get(unit, torch.zeros_like(counts)) + counts
            return
        rows = x.flatten(0, -2)
        if unit not in sums:
            sums[unit] = torch.zeros(rows.shape[1], rows.shape[1])
        sums[unit].addmm_(rows.T, rows)

    hidden = model.hidden(window, tap)
    tap("head", hidden, hidden)


def output_moments(model: Dense, windows: Tensor, seed: int, progress: Progress) -> dict[str, Tensor]:
    """Average g² of every unit's outputs, on next tokens drawn from the model's own distribution."""

    @torch.enable_grad()
    def squares(at: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed + at)
        return _output_squares(model, windows[at][None], draw)

    return _mean(parallel(squares, range(len(windows)), progress).values(), windows.numel())


def _output_squares(model: Dense, window: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def tap(unit: str, _: Tensor, y: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            squares = gradient.flatten(0, -2).square().sum(0)
            sums[unit] = sums.get(unit, torch.zeros_like(squares)) + squares

        if not y.requires_grad:
            y.requires_grad_()  # only the embedding's rows: every later output depends on them
        y.register_hook(add)  # type: ignore[no-untyped-call]

    logits = model.logits(model.hidden(window, tap), tap).flatten(0, 1)
    said = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
    torch.nn.functional.cross_entropy(logits, said, reduction="sum").backward()  # type: ignore[no-untyped-call]
    return sums


def _mean(parts: Iterable[Mapping[str, Tensor]], tokens: int) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for part in parts:
        for unit, tensor in part.items():
            total[unit] = total[unit].add_(tensor) if unit in total else tensor
    return {unit: tensor.div_(tokens) for unit, tensor in total.items()}
