"""Open-loop load in a process of its own: `load.py BASE RATE SECONDS SEED` asks at Poisson times, whatever comes back.

Each call is a short prompt of its own and ANSWER_TOKENS tokens. Bounded: at most MOST_CALLS calls, and whoever has no
whole answer DRAIN_S after the last arrival is cut off and counted. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import asdict, dataclass, field

import aiohttp
import orjson

ANSWER_TOKENS, MOST_CALLS, DRAIN_S = 48, 2000, 10


@dataclass(slots=True)
class Seen:
    """What the callers saw; times in seconds."""

    asked: int = 0
    refused: int = 0
    cut: int = 0
    tokens: int = 0
    span_s: float = 0.0
    decoding_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)


async def ask(http: aiohttp.ClientSession, base: str, number: int, seen: Seen) -> None:
    """Stream one answer and note when its tokens came."""
    body = {"model": "smollm2", "prompt": f"Item {number * 7919 % 9973} of the list:", "max_tokens": ANSWER_TOKENS}
    body |= {"temperature": 0, "ignore_eos": True, "stream": True}
    asked, first, last = time.perf_counter(), 0.0, 0.0
    seen.asked += 1
    try:
        async with http.post(f"{base}/v1/completions", json=body) as answer:
            if answer.status != 200:
                seen.refused += 1
                return
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    seen.tokens += 1
                    last = time.perf_counter()
                    first = first or last
    except asyncio.CancelledError:
        seen.cut += 1
    finally:
        if first:
            seen.first_token_s.append(first - asked)
            seen.decoding_s += last - first


async def load(base: str, rate: float, seconds: float, seed: int) -> Seen:
    """Ask at exponential intervals, then wait a while for what is still open."""
    chance, seen, began = random.Random(seed), Seen(), time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        calls, at = [], began
        while (at := at + chance.expovariate(rate)) < began + seconds and len(calls) < MOST_CALLS:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            calls.append(asyncio.create_task(ask(http, base, seed * 1000 + len(calls), seen)))
        if calls:
            await asyncio.wait(calls, timeout=DRAIN_S)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    seen.span_s = time.perf_counter() - began
    return seen


if __name__ == "__main__":
    base, rate, seconds, seed = sys.argv[1:]
    sys.stdout.buffer.write(orjson.dumps(asdict(asyncio.run(load(base, float(rate), float(seconds), int(seed))))))
