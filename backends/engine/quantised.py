"""A checkpoint as the native runner wants it: matrices on our grid, exact where the file's own blocks fit it.

Refuses to know panels and kernels, and never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.engine.artifact import QuantFolder
from backends.engine.grids import GRIDS, from_gguf
from backends.engine.packed_folder import PackedFolder
from backends.engine.packing import Panels
from backends.engine.problems import CheckpointError
from backends.engine.quant import QuantError, QuantTensor, Scheme, quantize
from backends.engine.runner import ModelSpec
from backends.engine.weights import Checkpoint

# What is not on a grid of ours is rounded when it is loaded, to the scheme that costs nothing one can measure.
ROUNDED = Scheme(8, 32, symmetric=True)


@dataclass(frozen=True, slots=True)
class Quantised:
    """See `native.Weights`."""

    checkpoint: Checkpoint

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return self.checkpoint.spec

    @property
    def rope_factors(self) -> NDArray[np.float32] | None:
        """See `Checkpoint.rope_factors`."""
        return self.checkpoint.rope_factors

    def matrix(self, name: str) -> QuantTensor | Panels:
        """Return the matrix `name`, as mapped panels where the file has them. CheckpointError: scales are none."""
        try:
            return self._matrix(name)
        except QuantError as exc:
            raise CheckpointError(f"{self.checkpoint.source.files[0]}: {name}: {exc}") from exc

    def scheme(self, name: str) -> Scheme:
        """Say how the matrix `name` will be held, from its first row."""
        source = self.checkpoint.source
        if isinstance(source, QuantFolder):
            return source.scheme(name)
        if isinstance(source, PackedFolder) and (found := source.matrix(name)) is not None:
            return found.scheme  # only its zeros tell whether it is symmetric
        kind, raw = source.raw(name)
        shape = source.shape(name)
        if kind not in GRIDS or shape is None:
            return ROUNDED
        try:
            return from_gguf(raw[:1], kind, (1, shape[1])).scheme
        except QuantError as exc:
            raise CheckpointError(f"{source.files[0]}: {name}: {exc}") from exc

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return the norm or bias `name`."""
        return self.checkpoint.tensor(name)

    def _matrix(self, name: str) -> QuantTensor | Panels:
        source = self.checkpoint.source
        if isinstance(source, QuantFolder):
            return source.panels(name)
        if isinstance(source, PackedFolder) and (found := source.matrix(name)) is not None:
            return found
        kind, raw = source.raw(name)
        shape = source.shape(name)
        if kind in GRIDS and shape is not None:
            return from_gguf(raw, kind, (shape[0], shape[1]))
        return quantize(self.checkpoint.tensor(name), ROUNDED)
