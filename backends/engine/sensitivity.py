"""What each scheme would cost in each unit, in nats a token, without rounding the unit. Refuses to know budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from backends.engine.allocate import Choice
from backends.engine.calibrate import Moments
from backends.engine.gptq import Feedback, expected_error
from backends.engine.packing import panel_shape
from backends.engine.quant import Scheme, dequantize
from backends.engine.quant import quantize as round_plainly

SAMPLED_ROWS = 256
"""Rows looked at in a unit, evenly spread: scales of 256 rows tell the mean error of thousands to a few percent."""

LOOKED_UP_ROWS = 4096
"""Rows of the embedding looked at, the most frequent: nearly all tokens of a text."""

STORABLE = (
    *(Scheme(4, group) for group in (32, 64, 128)),
    *(Scheme(5, group) for group in (64, 128)),
    Scheme(6, 128),
    *(Scheme(bits, 128, symmetric=True) for bits in (4, 5, 6, 8)),
    Scheme(8, 32, symmetric=True),
)
ANALYSED = (Scheme(3, 128), *STORABLE)


def stored_bytes(scheme: Scheme, rows: Sequence[int], columns: int) -> int:
    """Bytes on disk of a unit whose matrices have `rows`; three bits have no layout, so theirs are the bare codes."""
    if scheme.bits == 3:
        return scheme.nbytes(sum(rows), columns)
    shapes = (panel_shape(scheme, count, columns) for count in rows)
    return sum(panels * stride for panels, _, stride in shapes)


def product_choices(weight: Tensor, rows: Sequence[int], moments: Moments, feedback: Feedback) -> list[Choice]:
    """Price every scheme of a product's matrices, stacked in `weight`, when they are rounded with error feedback."""
    chosen = _spread(len(weight))
    sample, outputs = weight[chosen], moments.outputs[chosen] * (len(weight) / len(chosen))

    def price(scheme: Scheme) -> Choice:
        loss = 0.5 * float(outputs @ _error(sample, scheme, moments, feedback))
        return Choice(scheme, stored_bytes(scheme, rows, weight.shape[1]), loss)

    return [price(scheme) for scheme in ANALYSED]


def lookup_choices(weight: Tensor, moments: Moments) -> list[Choice]:
    """Price every scheme of the embedding: rows are read as they are, and the frequent ones matter."""
    rows = torch.argsort(moments.inputs, descending=True, stable=True)[:LOOKED_UP_ROWS]
    sample, often = weight[rows], moments.inputs[rows]

    def price(scheme: Scheme) -> Choice:
        rounded = round_plainly(sample.numpy(), scheme, moments.outputs.numpy())
        missed = torch.from_numpy(dequantize(rounded)) - sample
        loss = 0.5 * float(often @ missed.square() @ moments.outputs)
        return Choice(scheme, stored_bytes(scheme, [len(weight)], weight.shape[1]), loss)

    return [price(scheme) for scheme in ANALYSED]


def tied_choices(lookup: Iterable[Choice], product: Iterable[Choice]) -> list[Choice]:
    """Price a matrix that is both embedding and head: stored once, it costs both losses."""
    return [Choice(one.scheme, one.nbytes, one.loss + other.loss) for one, other in zip(lookup, product, strict=True)]


def _spread(rows: int) -> Tensor:
    return torch.linspace(0, rows - 1, min(SAMPLED_ROWS, rows)).round().long()


def _error(rows: Tensor, scheme: Scheme, moments: Moments, feedback: Feedback) -> Tensor:
    """Predict diag(D H Dᵀ); weights that lie on the scheme's grid already cost nothing, which only rounding shows."""
    plain = round_plainly(rows.numpy(), scheme, feedback.importance)
    missed = torch.from_numpy(dequantize(plain)) - rows
    return torch.minimum(((missed @ moments.inputs) * missed).sum(1), expected_error(scheme, plain.scales, feedback))
