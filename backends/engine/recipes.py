"""Schemes by tensor class, as presets and as TOML. Refuses to know weights and measurements.

    activations = "int8"                                      # or "fp32"
    embed       = { bits = 4, group = 128, symmetric = true }
    head        = { bits = 8, group = 128, symmetric = true }
    attention   = { bits = 6, group = 128, symmetric = false }
    ffn         = { bits = 8, group = 128, symmetric = true }

A tied matrix is stored once: `head` then also serves lookups, or, when `head` is left out, `embed` serves both.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backends.engine.packing import panel_shape
from backends.engine.problems import CheckpointError
from backends.engine.quant import QuantError, Scheme
from backends.engine.runner import ModelSpec
from backends.engine.weights import expected_shapes

Activations = Literal["int8", "fp32"]
CLASSES = ("embed", "head", "attention", "ffn")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One scheme a tensor class. `head` None: the head's matrix is rounded as the embedding is."""

    embed: Scheme
    head: Scheme | None
    attention: Scheme
    ffn: Scheme
    activations: Activations = "int8"

    def scheme_of(self, unit: str, spec: ModelSpec) -> Scheme:
        """Return the scheme of a unit (see `dense.py`) or of a checkpoint's matrix."""
        match class_of(unit):
            case "attention":
                return self.attention
            case "ffn":
                return self.ffn
            case "head":
                return self.head or self.embed
            case _:
                return self.head if spec.tied_head and self.head else self.embed


BRIEF = Recipe(
    embed=Scheme(4, 128, symmetric=True),
    head=None,
    attention=Scheme(6, 128),
    ffn=Scheme(8, 128, symmetric=True),
)
"""Embeddings 4 bits in groups of 128, attention 6 bits asymmetric, FFN 8 bits, activations 8 bits symmetric."""

PRESETS: dict[str, Recipe] = {
    "brief": BRIEF,
    "brief-head8": Recipe(BRIEF.embed, Scheme(8, 128, symmetric=True), BRIEF.attention, BRIEF.ffn),
}


def class_of(unit: str) -> str:
    """Name the tensor class of a unit or matrix: embed, head, attention or ffn."""
    return next(part for part in unit.split(".") if part in CLASSES)


def matrix_bytes(recipe: Recipe, spec: ModelSpec) -> int:
    """Bytes of all matrices under a recipe: its true size, scales and padding counted."""
    total = 0
    for name, shape in expected_shapes(spec):
        if len(shape) == 2:
            panels, _, stride = panel_shape(recipe.scheme_of(name, spec), shape[0], shape[1])
            total += panels * stride
    return total


def open_recipe(name: str) -> Recipe:
    """Return a preset by name or read a TOML file; raises CheckpointError naming what is wrong in it."""
    if name in PRESETS:
        return PRESETS[name]
    try:
        table = tomllib.loads(Path(name).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise CheckpointError(f"recipe {name}: no preset ({', '.join(PRESETS)}) and no readable TOML: {exc}") from exc
    return parse(table, name)


def parse(table: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe's table."""
    unknown = sorted(table.keys() - {*CLASSES, "activations"})
    missing = sorted({"embed", "attention", "ffn"} - table.keys())
    if unknown or missing:
        raise CheckpointError(f"{where}: a recipe has {', '.join(CLASSES)}, activations; {unknown=}, {missing=}")
    activations = table.get("activations", "int8")
    if activations not in ("int8", "fp32"):
        raise CheckpointError(f'{where}: activations = {activations!r}; "int8" and "fp32" exist')
    schemes = {name: _scheme(table[name], f"{where}: [{name}]") for name in CLASSES if name in table}
    return Recipe(schemes["embed"], schemes.get("head"), schemes["attention"], schemes["ffn"], activations)


def _scheme(table: Any, where: str) -> Scheme:
    if not isinstance(table, dict) or table.keys() - {"bits", "group", "symmetric"} or "bits" not in table:
        raise CheckpointError(
            f"{where}: needs bits, and may have group and symmetric, like {{ bits = 6, group = 128 }}"
        )
    if table["bits"] == 3:
        raise CheckpointError(f"{where}: 3 bits are analysed only, no kernel runs them; choose 4, 5, 6 or 8")
    symmetric = table.get("symmetric", False)
    if not isinstance(symmetric, bool):
        raise CheckpointError(f"{where}: symmetric = {symmetric!r}; true and false exist")
    try:
        return Scheme(table["bits"], table.get("group", 128), symmetric)
    except QuantError as exc:
        raise CheckpointError(f"{where}: {exc}") from exc
