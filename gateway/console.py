"""What `tidegate serve` tells a person: what it does, how far a model is loaded, where to call it.

Refuses to know the log. Without a terminal it writes plain lines, and nothing at all when the log is JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gateway.units import Address

_TRY = """curl http://{address}/v1/chat/completions -H 'content-type: application/json' \\
  -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'"""


@dataclass(slots=True)
class Console:
    """Says each thing once; the progress of a model in quarters."""

    say: Callable[[str], None]
    is_silent: bool = False
    _told: dict[str, int] = field(default_factory=dict)

    def listening(self, address: Address, admin: Address, token_file: Path | None) -> None:
        """Tell where the ports are, and where the admin token is if it was made for this start."""
        self.line(f"the API is at http://{address}/v1")
        self.line(f"the admin port is at http://{admin}" + (f", its token in {token_file}" if token_file else ""))

    def loading(self, replica: str, what: str, fraction: float) -> None:
        """Tell how far a worker has come, at most once for each quarter."""
        quarter = int(fraction * 4)
        if self._told.get(replica) != quarter:
            self._told[replica] = quarter
            self.line(f"{replica}: {what} {fraction:.0%}")

    def ready(self, replica: str, model: str, address: Address) -> None:
        """Tell that a replica serves, and once how to call it."""
        self.line(f"{replica}: ready")
        if "" not in self._told:
            self._told[""] = 1
            self.line(f"try it:\n{_TRY.format(address=address, model=model)}")

    def line(self, text: str) -> None:
        """Tell anything else."""
        if not self.is_silent:
            self.say(text)


def open_console(*, is_silent: bool, stream: IO[str] | None = None) -> Console:
    """Return a console for standard output, with colours on a terminal."""
    out = sys.stdout if stream is None else stream
    if is_silent or not out.isatty():
        return Console(lambda text: print(f"tidegate: {text}", file=out, flush=True), is_silent=is_silent)
    from rich.console import Console as Terminal  # noqa: PLC0415 (only a terminal needs its 10 MB)
    from rich.text import Text  # noqa: PLC0415

    terminal = Terminal(file=out, highlight=False)
    return Console(
        lambda text: terminal.print(Text("tidegate ", "bold cyan"), text, sep="", soft_wrap=True, markup=False)
    )
