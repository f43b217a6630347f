"""Rounding with error feedback: each column's error is made good by the columns that are still free (GPTQ).

Refuses to know models. Columns go in the order of falling second moment, groups keep their columns together: scales are
searched before the first column is rounded, from the weights as they are.

With U the upper Cholesky factor of H⁻¹ (in that order), rounding column j with error r costs (r / U[j, j])² in all when
the columns after it make good what they can. Its expectation, r² = scale² / 12, predicts the cost of a scheme without
rounding anything (`expected_error`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backends.engine.quant import Floats, Halves, QuantError, QuantTensor, Scheme, fit

DAMPING = 0.01
"""Share of the mean second moment added to the diagonal; tenfold more each time that H is still not definite."""
BLOCK = 128
"""Columns whose feedback to all later columns is one matrix product."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """Second moments of inputs, ready for rounding: the order of columns, U in that order, diag(H) in W's own."""

    order: Tensor
    upper: Tensor
    importance: Floats


def feedback_of(inputs: Tensor) -> Feedback:
    """Factorise second moments [K, K]; columns that are always zero are pinned by the damping."""
    diagonal = inputs.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    ordered = inputs[order][:, order]
    damping = DAMPING * float(diagonal.mean()) or 1.0
    for _ in range(6):
        lower, failed = torch.linalg.cholesky_ex(ordered + damping * torch.eye(len(ordered)))
        if not failed:
            upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
            return Feedback(order, upper, diagonal.numpy())
        damping *= 10
    raise QuantError("the second moments of a product's inputs are not finite; the calibration text broke the model")


def round_with_feedback(weight: Tensor, scheme: Scheme, feedback: Feedback) -> QuantTensor:
    """Round a matrix [N, K] so that its products, not its weights, change least."""
    scales, minimums = fit(weight.numpy(), scheme, feedback.importance)
    codes = _codes(weight, scheme, (_wide(scales), _lows(scheme, scales, minimums)), feedback)
    return QuantTensor(scheme, codes.numpy(), scales, None if scheme.symmetric else minimums)


def expected_error(scheme: Scheme, scales: Halves, feedback: Feedback) -> Tensor:
    """Predict diag(D H Dᵀ) [N] of `round_with_feedback` with these scales."""
    costs = torch.zeros(scales.shape[1])
    costs.index_add_(0, feedback.order // scheme.group, feedback.upper.diagonal().square().reciprocal())
    return _wide(scales).T.square() @ costs / 12


def _codes(weight: Tensor, scheme: Scheme, headers: tuple[Tensor, Tensor], feedback: Feedback) -> Tensor:
    order, upper = feedback.order, feedback.upper
    groups = order // scheme.group
    free = weight.T[order].contiguous()
    codes = torch.empty(free.shape, dtype=torch.uint8)
    for start in range(0, len(free), BLOCK):
        part = slice(start, start + BLOCK)
        block, local = free[part], upper[part, part]
        missed = torch.empty_like(block)
        for column, group in enumerate(groups[part].tolist()):
            scale, low = headers[0][group], headers[1][group]
            code = ((block[column] - low) / scale).round_().clamp_(0, scheme.top)
            missed[column] = (block[column] - code * scale - low) / local[column, column]
            codes[start + column] = code
            block[column + 1 :].addr_(local[column, column + 1 :], missed[column], alpha=-1)
        free[start + BLOCK :].addmm_(upper[part, start + BLOCK :].T, missed, alpha=-1)
    return codes[torch.argsort(order)].T.contiguous()


def _wide(scales: Halves) -> Tensor:
    """Transpose to [groups, N] in fp32; a group of zeros gets a scale that no weight notices."""
    wide = torch.from_numpy(scales.astype(np.float32)).T
    return torch.where(wide == 0, torch.tensor(1e-30), wide).contiguous()


def _lows(scheme: Scheme, scales: Halves, minimums: Halves) -> Tensor:
    if scheme.symmetric:
        return torch.from_numpy(scales.astype(np.float32)).T.contiguous() * -scheme.middle
    return torch.from_numpy(minimums.astype(np.float32)).T.contiguous()
