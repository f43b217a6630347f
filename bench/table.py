"""One table on the terminal and one JSON file in build/bench for every benchmark; knows nothing of what is measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """A measured figure with its repetitions; `peer` is another program's figure measured in the same run."""

    name: str
    unit: str
    samples: Sequence[float]
    peer: float | None = None
    peer_name: str | None = None
    goal: float | None = None
    less_is_better: bool = False

    @property
    def ours(self) -> float:
        """The median of the repetitions."""
        return statistics.median(self.samples)

    @property
    def ratio(self) -> float | None:
        """How many times the peer's figure ours is."""
        return self.ours / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.ours <= self.goal if self.less_is_better else self.ours >= self.goal

    def as_json(self) -> dict[str, object]:
        """Give the row as build/bench holds it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "range": [min(self.samples), max(self.samples)],
            "peer": self.peer,
            "peer_name": self.peer_name,
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.met,
        }


def machine() -> str:
    """Name the processor and the cores this process may use."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores, {platform.platform()}"


def versions() -> dict[str, str]:
    """Name the versions that a figure depends on."""
    return {name: metadata.version(name) for name in ("tidegate", "numpy", "torch")} | {
        "python": platform.python_version()
    }


def report(name: str, rows: Sequence[Row]) -> None:
    """Print the table and write build/bench/NAME.json."""
    table = Table("what", "unit", "median", "range", "peer", "ratio", "goal", title=f"{name} · {machine()}")
    for row in rows:
        peer = f"{row.peer:.4g} {row.peer_name}" if row.peer else ""
        ratio = f"{row.ratio:.2f}" if row.ratio else ""
        goal = f"{row.goal:.4g} {'met' if row.met else 'missed'}" if row.goal is not None else ""
        spread = f"{min(row.samples):.4g} … {max(row.samples):.4g}"
        table.add_row(row.name, row.unit, f"{row.ours:.4g}", spread, peer, ratio, goal)
    Console(width=None if os.isatty(1) else 120).print(table)
    target = Path("build/bench") / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "versions": versions(), "rows": [row.as_json() for row in rows]}
    target.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
