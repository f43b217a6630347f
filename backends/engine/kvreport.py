"""What `tidegate sessions calibrate MODEL` shows: how far it is, what each profile costs, and which line chooses one.

Refuses to know how codecs are calibrated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from backends.engine import texts
from backends.engine.bars import bars_on
from backends.engine.kvcalibrate import calibrate
from backends.engine.kvprofile import Profile
from backends.engine.loading import opened
from backends.engine.planning import Settings
from backends.engine.problems import CheckpointError
from backends.kernels.cpu import native_missing

WIDTH = 100


@dataclass(frozen=True, slots=True)
class Order:
    """Where profiles go, what is measured on (`windows` windows of `text`, or of Python's own), and `min_agreement`."""

    folder: Path
    text: Path | None
    windows: int
    least: float


def calibrated(settings: Settings, order: Order) -> None:
    """Calibrate a release as a worker opens it, stretched if it is, and tell what came of it. CheckpointError."""
    _check(settings, order)
    text = texts.from_file(order.text) if order.text else texts.shipped()
    with bars_on(Console(stderr=True)) as shown:
        tasks: dict[str, TaskID] = {}

        def watch(phase: str, done: float) -> None:
            if phase not in tasks:
                tasks[phase] = shown.add_task(phase, total=1.0)
            shown.update(tasks[phase], completed=done)

        profiles = calibrate(opened(settings), order.folder, watch, text=text, held_out=order.windows)
    _tell(profiles, text.origin, order)


def _check(settings: Settings, order: Order) -> None:
    """Refuse what would be measured in vain."""
    if reason := native_missing():
        raise CheckpointError(f"calibrating needs the native runner: {reason}")
    if settings.kv_format != "fp16":
        raise CheckpointError(
            f'{settings.model}: profiles are for kv_format "fp16", and [batching] kv_format is "{settings.kv_format}", '
            'whose codes codec = "exact" keeps as they are'
        )
    if order.windows < 1:
        raise CheckpointError(f"--windows {order.windows}: at least 1 is needed; 8 are good")


def _tell(profiles: Sequence[Profile], origin: str, order: Order) -> None:
    """Print the table, and the line of the configuration that chooses the smallest profile that may be used."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(_table(profiles, origin))
    console.print(f"written to {order.folder}", soft_wrap=True)
    usable = [each for each in profiles if each.measured.decisive >= order.least]
    for each in profiles:
        if each not in usable:
            console.print(f"{each.name} is below min_agreement ({order.least}) and would be refused")
    if usable:
        smallest = max(usable, key=lambda each: each.measured.ratio)
        console.print(rf'to use one, write under \[sessions]:  codec = "{smallest.name}"')


def _table(profiles: Sequence[Profile], origin: str) -> Table:
    count = profiles[0].measured.positions
    table = Table("codec", "smaller", "same token", "where it matters", "KL", "perplexity", title=f"{count} tokens")
    table.caption = f"after a restored prefix against an unrestored one; {origin}"
    for each in profiles:
        found = each.measured
        shares = (f"{found.top1:.1%}", f"{found.decisive:.1%}", f"{found.kl:.4f}")
        change = f"{found.perplexity - 1:+.2%} ± {found.perplexity_error:.2%}"
        table.add_row(each.name, f"{found.ratio:.2f} x", *shares, change)
    return table
