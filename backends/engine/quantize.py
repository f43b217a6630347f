"""What `tidegate quantize IN OUT` is asked for: make a checkpoint small without making it worse than asked.

Refuses to know how that is done (`quantizer.py`), so that printing the help loads no torch.

Exit codes: 0 written; 2 something is wrong with what was given; 3 both limits cannot be met, and the nearest points
that can be are told. State is kept in OUT/.work until a model is written: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.engine.problems import CheckpointError
from backends.engine.quant import QuantError


@dataclass(frozen=True, slots=True)
class Order:
    """The command line, parsed. A `recipe` fixes every scheme and leaves nothing to search."""

    source: str
    out: Path
    target_share: float
    min_accuracy: float
    activations: Literal["int8", "fp32"]
    calibration: Path | None
    recipe: str | None
    seed: int


def main(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    # Small products on two threads spend more time waking each other than computing; must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _quantizer()(order_of(options))
    except (CheckpointError, QuantError) as exc:
        sys.stderr.write(f"tidegate: {exc}\n")
        return 2


def _quantizer() -> Callable[[Order], int]:
    try:
        from backends.engine.quantizer import quantize  # noqa: PLC0415 - torch takes seconds to import
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise CheckpointError(
            "quantize computes with torch, which is not installed: pip install 'tidegate[torch]'"
        ) from exc
    return quantize


def order_of(options: argparse.Namespace) -> Order:
    """Check the arguments; raises CheckpointError."""
    for name, share in (("--target-size", options.target_size), ("--min-accuracy", options.min_accuracy)):
        if not 0 < share <= 1:
            raise CheckpointError(f"{name} {share}: a share above 0 and at most 1 is needed, such as 0.35")
    if (options.out / "quant.json").exists():
        raise CheckpointError(f"{options.out}: holds a quantised model already; delete it or name another folder")
    return Order(
        source=options.source,
        out=options.out,
        target_share=options.target_size,
        min_accuracy=options.min_accuracy,
        activations=options.act,
        calibration=options.calibration,
        recipe=options.recipe,
        seed=options.seed,
    )
