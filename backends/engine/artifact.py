"""A quantised model on disk: quant.json, model.safetensors, the tokenizer's files. Refuses to know how it was rounded.

quant.json says the model's shape and every matrix's scheme. model.safetensors holds each matrix as the bytes that the
kernels read (`packing.py`), each starting at a multiple of 64 of the file, so that a worker can map them uncopied;
norms and biases are F32. A GGUF's tokenizer comes along as tokenizer.gguf, the file's keys without its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from backends.engine import gguf_file, hf_folder, safetensors_file, tokens
from backends.engine.files import read_json
from backends.engine.packing import Bytes, Panels
from backends.engine.problems import CheckpointError
from backends.engine.quant import QuantError, QuantTensor, Scheme, dequantize
from backends.engine.runner import ModelSpec
from backends.engine.unpacking import unpack

DESCRIPTION, WEIGHTS, GGUF_TOKENIZER = "quant.json", "model.safetensors", "tokenizer.gguf"
FORMAT, VERSION, LAYOUT = "tidegate-quant", 1, "panels-16x32"
ROPE_FACTORS = "rope_factors"
# What each kind of field of a ModelSpec may be; JSON has no types of its own to hold a file to.
_KINDS: Mapping[str, Callable[[object], bool]] = {
    "int": lambda value: type(value) is int and 0 < value < 1 << 31,
    "float": lambda value: type(value) in {int, float} and 0 < cast("float", value) < math.inf,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
}


class QuantFolder:
    """A written folder as a checkpoint; see `weights.Source`. Matrices also come as they were rounded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = (folder / DESCRIPTION, folder / WEIGHTS)
        self.description = read_json(folder / DESCRIPTION)
        self.tensors = safetensors_file.read(folder / WEIGHTS, {**safetensors_file.WIDTHS, **safetensors_file.BYTES})
        self.spec, self._schemes = self._read_spec(), self._read_schemes()

    @property
    def activations(self) -> str:
        """Which activations the accuracy was judged with: `int8` or `fp32`."""
        return str(self.description.get("activations", "fp32"))

    @property
    def rope_factors(self) -> NDArray[np.float32] | None:
        """See `weights.Source`."""
        stored = self.tensors.get(ROPE_FACTORS)
        if stored is None:
            return None
        factors = stored.as_float32()
        if factors.shape != (self.spec.head_dim // 2,) or not (factors > 0).all():
            raise self._problem(f"{ROPE_FACTORS} should be {self.spec.head_dim // 2} positive numbers")
        return factors

    @cached_property
    def tokenizer(self) -> tokens.Tokenizer:
        """Built on first use."""
        if (self.folder / GGUF_TOKENIZER).exists():
            return tokens.from_gguf(gguf_file.read(self.folder / GGUF_TOKENIZER))
        return hf_folder.tokenizer_of(self.folder)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `weights.Source`."""
        if name in self._schemes:
            return self._schemes[name][1]
        return self.tensors[name].shape if name in self.tensors else None

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `weights.Source`."""
        return dequantize(self.matrix(name)) if name in self._schemes else self.tensors[name].as_float32()

    def raw(self, name: str) -> tuple[str, Bytes]:
        """Return a matrix's panels, mapped, under its scheme's name; see `weights.Source` for the rest."""
        stored = self.tensors[name]
        if name in self._schemes:
            return f"panels:{self._schemes[name][0]}", stored.bytes.reshape(stored.shape)
        return stored.type, stored.bytes.reshape(stored.shape[0], -1)

    def scheme(self, name: str) -> Scheme:
        """Say how a matrix was rounded."""
        return self._schemes[name][0]

    def matrix(self, name: str) -> QuantTensor:
        """Return a matrix as it was rounded."""
        return unpack(self.panels(name))

    def panels(self, name: str) -> Panels:
        """Return a matrix's panels, mapped; this looks at every scale of it, and so at nearly every page."""
        scheme, shape = self._schemes[name]
        try:
            found = Panels(scheme, *shape, self.tensors[name].bytes)
        except QuantError as exc:
            raise self._problem(f"{name}: {exc}") from exc
        if not np.isfinite(found.headers).all():
            raise CheckpointError(f"{self.folder / WEIGHTS}: {name} holds a scale that is NaN or infinite")
        return found

    def _read_spec(self) -> ModelSpec:
        told = [self.description.get(key) for key in ("format", "version", "layout")]
        if told != [FORMAT, VERSION, LAYOUT]:
            raise self._problem(f"{told} is not the format that this version reads; run `tidegate quantize` again")
        try:
            spec = ModelSpec(**self.description["model"])
        except (KeyError, TypeError) as exc:
            raise self._problem(f'"model" is not a model\'s shape: {exc}') from exc
        for field in fields(spec):
            if not _KINDS[str(field.type)](getattr(spec, field.name)):
                raise self._problem(f"model.{field.name} is {getattr(spec, field.name)!r:.80}, which none can have")
        return spec

    def _read_schemes(self) -> dict[str, tuple[Scheme, tuple[int, int]]]:
        found: dict[str, tuple[Scheme, tuple[int, int]]] = {}
        matrices = self.description.get("matrices", {})
        if not isinstance(matrices, dict):
            raise self._problem('"matrices" is not a table of matrices')
        for name, entry in matrices.items():
            match entry:
                case {"shape": [int(rows), int(columns)], "bits": bits, "group": group, "symmetric": bool(symmetric)}:
                    found[name] = self._scheme(bits, group, symmetric=symmetric), (rows, columns)
                case _:
                    raise self._problem(f'"matrices" has a malformed entry for {name!r}')
            if name not in self.tensors:
                raise self._problem(f"{name} is described, but {WEIGHTS} does not hold it")
        return found

    def _scheme(self, bits: Any, group: Any, *, symmetric: bool) -> Scheme:
        try:
            return Scheme(bits, group, symmetric)
        except QuantError as exc:
            raise self._problem(str(exc)) from exc

    def _problem(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.folder / DESCRIPTION}: {text}")
