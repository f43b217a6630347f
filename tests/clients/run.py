"""Does with one client what the tasks on standard input ask for, one after the other, and prints a report a line.

`python -m tests.clients.run CLIENT < tasks.json`; the twin of run.mjs. A process of its own, as each client brings its
own warnings, environment and slow imports.
"""

from __future__ import annotations

import importlib
import json
import sys
from queue import Empty, SimpleQueue
from threading import Thread

from tests.clients.reports import Feature, Report, Task, attempt


def main() -> None:
    """Report on every task."""
    features = importlib.import_module(f"tests.clients.{sys.argv[1]}").FEATURES
    for task in json.load(sys.stdin):
        report = patiently(features[task.pop("feature")], Task(**task))
        sys.stdout.write(json.dumps(report) + "\n")


def patiently(feature: Feature, task: Task) -> Report:
    """Do it, unless the client would wait longer than anybody wants to watch."""
    done: SimpleQueue[Report] = SimpleQueue()
    Thread(target=lambda: done.put(attempt(feature, task)), daemon=True).start()
    try:
        return done.get(timeout=task.patience_s)
    except Empty:
        return {"waits": True}


if __name__ == "__main__":
    main()
