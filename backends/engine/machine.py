"""How much memory this process may use: the machine's, or less where a control group says so.

Refuses to know what it is used for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def memory_bytes(root: Path = _ROOT) -> int:
    """Return the least of the machine's memory and the limits of our control groups, up to the outermost."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    machine = int(total[1]) * 1024 if total else 0
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Yield every limit, of version 2 of control groups and of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits_of(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_of(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _limits_of(mount: Path, path: str, file: str) -> Iterator[int]:
    """Yield the limits of a group and of those around it; in a container the outermost is the container's own."""
    group = mount / path.strip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(mount):
            try:
                limit = (folder / file).read_text().strip()
            except OSError:
                continue
            if limit.isdigit():
                yield int(limit)
