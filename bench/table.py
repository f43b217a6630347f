"""One table on the terminal and one JSON file in build/bench for every benchmark; knows nothing of what is measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """A measured figure with its repetitions, and those of a peer: another program measured in the same run.

    `goal` is for our figure, `ratio_goal` for the ratio. `bests` are the best single measurements of both, which other
    load on the machine moves least. `bound` is what the machine allows at most.
    """

    name: str
    unit: str
    samples: Sequence[float]
    peer_samples: Sequence[float] = ()
    peer_name: str | None = None
    goal: float | None = None
    ratio_goal: float | None = None
    less_is_better: bool = False
    bests: tuple[float, float] | None = None
    bound: float | None = None

    @property
    def ours(self) -> float:
        """The median of the repetitions."""
        return statistics.median(self.samples)

    @property
    def peer(self) -> float | None:
        """The median of the peer's repetitions."""
        return statistics.median(self.peer_samples) if self.peer_samples else None

    @property
    def ratio(self) -> float | None:
        """How many times the peer's figure ours is."""
        return self.ours / self.peer if self.peer else None

    @property
    def ratio_of_bests(self) -> float | None:
        """The same for the best single measurements."""
        return self.bests[0] / self.bests[1] if self.bests else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        figure, goal = (self.ratio, self.ratio_goal) if self.ratio_goal is not None else (self.ours, self.goal)
        if goal is None or figure is None:
            return None
        return figure <= goal if self.less_is_better else figure >= goal

    def as_json(self) -> dict[str, object]:
        """Give the row as build/bench holds it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "range": _range(self.samples),
            "peer": self.peer,
            "peer_range": _range(self.peer_samples),
            "peer_name": self.peer_name,
            "ratio": self.ratio,
            "ratio_of_bests": self.ratio_of_bests,
            "bound": self.bound,
            "goal": self.goal if self.ratio_goal is None else self.ratio_goal,
            "met": self.met,
        }


def _range(samples: Sequence[float]) -> list[float] | None:
    return [min(samples), max(samples)] if samples else None


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
    result = {"machine": machine(), "versions": versions(), "rows": [row.as_json() for row in rows]}
    target = Path("build/bench") / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    table = Table(*(heading for heading, _ in COLUMNS), title=f"{name} · {machine()}")
    for row in rows:
        table.add_row(*cells(row.as_json()))
    Console(width=None if os.isatty(1) else 170).print(table)


def cells(row: Mapping[str, Any]) -> list[str]:
    """Write a row of build/bench/NAME.json in words, for terminals and for docs/results."""
    return [write(row) for _, write in COLUMNS]


def _spread(samples: Sequence[float] | None) -> str:
    return f"{samples[0]:.4g} … {samples[1]:.4g}" if samples and samples[0] != samples[1] else ""


def _ratio(row: Mapping[str, Any]) -> str:
    best = f" ({row['ratio_of_bests']:.2f})" if row["ratio_of_bests"] else ""
    return f"{row['ratio']:.2f}{best}" if row["ratio"] else ""


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['ours'] / row['bound']:.0%} of {row['bound']:.4g}" if row["bound"] else ""


def _goal(row: Mapping[str, Any]) -> str:
    return "" if row["goal"] is None else f"{row['goal']:.4g} {'met' if row['met'] else 'missed'}"


COLUMNS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("what", lambda row: str(row["name"])),
    ("unit", lambda row: str(row["unit"])),
    ("median", lambda row: f"{row['ours']:.4g}"),
    ("range", lambda row: _spread(row["range"])),
    ("peer", lambda row: str(row["peer_name"] or "")),
    ("its median", lambda row: f"{row['peer']:.4g}" if row["peer"] else ""),
    ("its range", lambda row: _spread(row["peer_range"])),
    ("ratio (of bests)", _ratio),
    ("of the bound", _share),
    ("goal", _goal),
)
