"""Write the parts of the docs that repeat what the code says; with --check, only say which are out of date.

A part lies between `<!-- begin NAME -->` and `<!-- end NAME -->`; the text around it is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from gateway.cli import parser
from gateway.metrics import Metrics
from gateway.storemetrics import StoreSeries

ROOT = Path(__file__).parent.parent
FOLDERS = ("gateway", "gateway/dialects", "gateway/openapi", "gateway/control", "gateway/admin")
FOLDERS += ("batching", "sessioncache", "backends", "backends/engine", "backends/kernels", "backends/kernels/cpu")
LANGUAGES = {"python": "Python", "javascript": "JavaScript"}


def files_table() -> str:
    """Say of each file of the packages what it is for, in its own first sentence."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.*"), key=package_first)]
    rows = [f"| `{path.relative_to(ROOT)}` | {sentence} |" for path in paths if (sentence := purpose(path))]
    return "\n".join(["| file | what it is for |", "|---|---|", *rows])


def package_first(path: Path) -> tuple[bool, str]:
    """Sort a package's own sentence before those of its files."""
    return path.name != "__init__.py", path.name


def purpose(path: Path) -> str:
    """Give the first sentence of a Python file's docstring or of a C++ file's first comment."""
    text = ""
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
    elif path.suffix in {".cpp", ".h"} and (comment := re.match(r"(?://.*\n)+", path.read_text())):
        text = comment[0].replace("//", "")
    return first_sentence(text)


def first_sentence(text: str) -> str:
    """Cut after the first full stop that ends a sentence, on one line."""
    return re.split(r"(?<=\.)\s", " ".join(text.split()))[0].replace("|", "\\|")


def metrics_table() -> str:
    """List every series with its kind, labels and help."""
    lines = ["| series | kind | labels | what it says |", "|---|---|---|---|"]
    for series in (*series_of(Metrics()), *series_of(StoreSeries(CollectorRegistry()))):
        (family,) = series.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in series._labelnames)  # noqa: SLF001 - it has no public name
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines)


def series_of(owner: object) -> Iterator[MetricWrapperBase]:
    """Yield the series among an object's fields, and those in its dictionaries."""
    for each in vars(owner).values():
        yield from (
            one for one in (each.values() if isinstance(each, dict) else [each]) if isinstance(one, MetricWrapperBase)
        )


def commands() -> str:
    """Show the help of every subcommand."""
    return "\n\n".join(f"## {each.prog}\n\n```\n{each.format_help().strip()}\n```" for each in subcommands(parser()))


def subcommands(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser and those below it."""
    yield of
    for action in of._actions:  # noqa: SLF001 - argparse has no public way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in dict.fromkeys(action.choices.values()):
                yield from subcommands(below)


def clients_table() -> str:
    """Say which client can do what, in the version that the tests use."""
    rows = client_rows()
    features = list(dict.fromkeys(feature for row in rows for feature in row["features"]))
    lines = [f"| client | package | {' | '.join(features)} |", f"|---|---|{':-:|' * len(features)}"]
    for row in rows:
        marks = ("✓" if feature in row["features"] else "" for feature in features)
        lines.append(f"| {name(row)} | {package(row)} | {' | '.join(marks)} |")
    return "\n".join(lines)


def faults_table() -> str:
    """Say what each client's users see of each fault."""
    rows = client_rows()
    faults = list(rows[0]["faults"])
    lines = [f"| client | {' | '.join(faults)} |", "|---" * (len(faults) + 1) + "|"]
    lines += [f"| {name(row)} | {' | '.join(row['faults'][fault] for fault in faults)} |" for row in rows]
    return "\n".join(lines)


def client_rows() -> list[dict[str, Any]]:
    """Read what the tests of the clients are held to."""
    return list(tomllib.loads((ROOT / "tests/clients/clients.toml").read_text()).values())


def package(row: dict[str, Any]) -> str:
    """Name a client's package and the version that is tested."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    if row["language"] == "javascript":
        pins = json.loads((ROOT / "tests/clients/package.json").read_text())["dependencies"]
    return f"`{row['package']}` {pins[row['package']]}"


def name(row: dict[str, Any]) -> str:
    """Name a client with its language."""
    return f"{row['title']} ({LANGUAGES[row['language']]})"


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "files": ("ARCHITECTURE.md", files_table),
    "metrics": ("docs/metrics.md", metrics_table),
    "commands": ("docs/cli.md", commands),
    "clients": ("docs/clients.md", clients_table),
    "faults": ("docs/clients.md", faults_table),
}


def main() -> int:
    """Write all parts, or with --check compare them."""
    os.environ["COLUMNS"] = "100"  # argparse wraps at the terminal's width
    stale = []
    for name, (file, write) in PARTS.items():
        text = (ROOT / file).read_text()
        fresh = with_part(text, name, write())
        if fresh != text:
            stale.append(file)
            if "--check" not in sys.argv:
                (ROOT / file).write_text(fresh)
    if stale and "--check" in sys.argv:
        sys.stdout.write(f"out of date, run `make docs`: {', '.join(stale)}\n")
        return 1
    return 0


def with_part(text: str, name: str, part: str) -> str:
    """Put a part between its marks."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{part}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
