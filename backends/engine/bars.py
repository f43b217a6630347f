"""The progress bars of what takes minutes: what it is about, a bar, per cent, and the time so far."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


def bars_on(console: Console) -> Progress:
    """Show bars on a console, while it is entered."""
    return Progress(
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )
