"""Keep what build/bench holds: one page for this day and machine in docs/results, a table for each benchmark.

    make bench-results NOTE="two cores shared with other work"

The note, if there is one, stands above the tables.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
from pathlib import Path
from typing import Any

import orjson
from table import COLUMNS, cells, machine

FOLDER = Path("docs/results")


def table(name: str, result: dict[str, Any]) -> str:
    """Write one benchmark's table in Markdown, without the columns that it has no figure for."""
    rows = [cells(row) for row in result["rows"]]
    used = [at for at in range(len(COLUMNS)) if any(row[at] for row in rows)]
    lines = ["|".join(["", *(COLUMNS[at][0] for at in used), ""]), "|".join(["", *("---" for _ in used), ""])]
    lines += ["|".join(["", *(row[at] for at in used), ""]) for row in rows]
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    return f"## `make bench-{name}`\n\n{versions}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    files = sorted(Path("build/bench").glob("*.json"))
    if not files:
        sys.exit("bench: build/bench holds no results; run make bench-NAME first")
    today, name = dt.datetime.now(dt.UTC).date(), re.sub(r"[^a-z0-9]+", "-", machine().split(",")[0].lower())
    parts = [f"# {today}, {machine()}\n", *([f"{note}\n"] if (note := os.environ.get("NOTE")) else [])]
    parts += [table(file.stem, orjson.loads(file.read_bytes())) for file in files]
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / f"{today}-{name}.md"
    target.write_text("\n".join(parts))
    print(target)


if __name__ == "__main__":
    main()
