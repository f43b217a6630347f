"""What batching brings under open-loop load: Poisson arrivals at rising rates, batching on and off, three windows.

    make bench-batching            # about 6 minutes
    QUICK=1 make bench-batching    # one window, shorter: 2 minutes

The running batch is the time that answers spent between their first and last token over the time of the run.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
from load import Seen
from served import ready, serve
from table import Row, report

QUICK = bool(os.environ.get("QUICK"))
SECONDS = 8 if QUICK else 15
RATES = (1, 4, 16) if QUICK else (1, 4, 16, 64)
GOAL_BATCH, GOAL_SPEEDUP = 32, 6


@dataclass(frozen=True, slots=True)
class Setup:
    """A way to batch."""

    name: str
    max_batch: int
    window_ms: int

    @property
    def settings(self) -> str:
        """Spell it in gateway.toml."""
        return f'\n[batching]\nmax_batch = {self.max_batch}\nwindow = "{self.window_ms}ms"\n'


ONE = Setup("one at a time", 1, 0)
SETUPS = [ONE, *(Setup(f"batch 64, window {ms} ms", 64, ms) for ms in ((0,) if QUICK else (0, 2, 10)))]


async def loaded(base: str, rate: int) -> Seen:
    """Run the load in its own process, so that it does not share an event loop with what waits for it."""
    command = [sys.executable, str(Path(__file__).with_name("load.py")), base, str(rate), str(SECONDS), str(rate)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    return Seen(**orjson.loads(told))


async def measured(setup: Setup) -> dict[int, Seen]:
    """Start a gateway with this setup and load it at every rate."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        async with serve(Path(folder), setup.settings) as served, aiohttp.ClientSession() as http:
            await ready(http, served.base)
            found = {}
            for rate in RATES:
                found[rate] = await loaded(served.base, rate)
                print(f"{setup.name}, {rate}/s: {summary(found[rate])}", flush=True)
            return found


def summary(seen: Seen) -> str:
    """Say a run in a line."""
    rate, batch = seen.tokens / seen.span_s, seen.decoding_s / seen.span_s
    return f"{rate:.0f} tokens/s, batch {batch:.1f}, {seen.refused} refused, {seen.cut} cut of {seen.asked}"


def rows(setup: Setup, runs: dict[int, Seen], alone: dict[int, Seen]) -> Iterator[Row]:
    """Set each rate beside the same rate without batching; goals are for the highest."""
    for rate, seen in runs.items():
        name, other, is_top = f"{rate} calls/s, {setup.name}", alone[rate], rate == max(runs) and setup is not ONE
        peer = {} if setup is ONE else {"peer_name": ONE.name}

        def beside(samples: list[float], peer: dict[str, str] = peer) -> dict[str, object]:
            return {"peer_samples": samples, **peer} if peer else {}

        speed = beside([other.tokens / other.span_s])
        goal = GOAL_SPEEDUP if is_top else None
        yield Row(f"{name}: all answers", "tokens/s", [seen.tokens / seen.span_s], ratio_goal=goal, **speed)
        batch = [seen.decoding_s / seen.span_s]
        yield Row(f"{name}: running batch", "answers", batch, goal=GOAL_BATCH if is_top else None)
        for percent in (50, 99):
            waits = beside([1000 * quantile(other.first_token_s, percent)])
            wait = [1000 * quantile(seen.first_token_s, percent)]
            yield Row(f"{name}: first token, p{percent}", "ms", wait, less_is_better=True, **waits)


def quantile(samples: list[float], percent: int) -> float:
    """Give a percentile of what was seen; those who were cut off without a token are not in it."""
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1] if len(samples) > 1 else samples[0]


async def main() -> None:
    """Measure every setup and report."""
    runs = {setup: await measured(setup) for setup in SETUPS}
    report("batching", [row for setup in SETUPS for row in rows(setup, runs[setup], runs[ONE])])


if __name__ == "__main__":
    asyncio.run(main())
