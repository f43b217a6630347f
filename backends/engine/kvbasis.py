"""From statistics to transforms: principal axes where errors are weighed as attention weighs them, in whole numbers.

Refuses to know models and text. With M the weight of errors and y = M^(1/2) (x - mean), the axes are those of y's
covariance; one step of the symbols is then one size of error that matters, whatever the channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.engine.kvprofile import Transform

Matrix = NDArray[np.float64]
FLOOR = 1e-3
"""Least weight of a direction, of the mean: statistics of a few thousand tokens know no less."""

DROPPED = 0.18
"""Deviation, in steps, below which a channel has no symbols: one token in two hundred would have another than 0."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Axes of one group of heads: `directions` [channels, axes] of one unit, by falling `deviations`."""

    mean: NDArray[np.float64]
    root: Matrix
    directions: Matrix
    deviations: NDArray[np.float64]

    @property
    def power(self) -> float:
        """Mean square of the weighed values."""
        return float(np.mean(self.deviations**2))

    def transform(self, step: float) -> Transform:
        """Round the axes of `step` to 8 bits a row; the way there is the exact inverse of that way back."""
        kept = max(int(np.sum(self.deviations > DROPPED * step)), 1)
        columns = self.directions[:, :kept] * step
        scales = np.abs(columns).max(1) / 127
        scales[scales == 0] = 1.0
        codes = np.zeros((len(columns), -(-kept // 4) * 4), np.int8)
        codes[:, :kept] = np.round(columns / scales[:, None])
        scales = scales.astype(np.float32)
        decode = codes * scales[:, None].astype(np.float64)
        encode = np.linalg.pinv(self.root @ decode) @ self.root
        return Transform(self.mean.astype(np.float32), scales, np.ascontiguousarray(encode, np.float32), codes)


def basis_of(mean: NDArray[np.float64], covariance: Matrix, weights: Matrix) -> Basis:
    """Find the axes of values of this mean and covariance under these weights of their errors."""
    values, vectors = np.linalg.eigh(weights)
    roots = np.sqrt(np.maximum(values, FLOOR * values.mean()))
    root, inverse = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
    powers, axes = np.linalg.eigh(root @ covariance @ root)
    order = np.argsort(-powers)
    deviations = np.sqrt(np.maximum(powers[order], 0))
    return Basis(mean, root, inverse @ axes[:, order], deviations)
