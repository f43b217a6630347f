"""Measure a gateway with the embedded model from outside: start to first token, prefill and decode tokens a second.

Everything goes through the public HTTP port of a `tidegate serve` that this script starts and stops.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
from served import ready, serve
from table import Row, report

REPEATS = int(os.environ.get("REPEATS", "5"))
BATCHES = (1, 8, 32)
LONG, SHORT = 32, 2  # numbers in a prompt; a number is about five tokens
ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw of one streamed call, with times in seconds on one clock."""

    asked: float
    first: float
    last: float
    prompt_tokens: int
    answer_tokens: int


async def ask(http: aiohttp.ClientSession, base: str, prompt: str, max_tokens: int) -> Answer:
    """Stream one completion of exactly `max_tokens` tokens and time what arrives."""
    body = {
        "model": "smollm2",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked, first, last, usage = time.perf_counter(), 0.0, 0.0, {}
    async with http.post(f"{base}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            if event.get("usage"):
                usage = event["usage"]
            if event["choices"]:
                last = time.perf_counter()
                first = first or last
    return Answer(asked, first, last, usage["prompt_tokens"], usage["completion_tokens"])


def prompts(count: int, words: int, salt: int) -> list[str]:
    """Give prompts that share no prefix, so that no KV block can be reused."""
    return [" ".join(f"{(salt * 7919 + i * 101 + w) % 9973}" for w in range(words)) for i in range(count)]


async def together(http: aiohttp.ClientSession, base: str, texts: list[str], max_tokens: int) -> list[Answer]:
    """Ask all calls at once."""
    return await asyncio.gather(*(ask(http, base, text, max_tokens) for text in texts))


def prefill_rate(answers: list[Answer]) -> float:
    """Prompt tokens of all calls over the time until the last of them has its first token."""
    took = max(answer.first for answer in answers) - min(answer.asked for answer in answers)
    return sum(answer.prompt_tokens for answer in answers) / took


def decode_rate(answers: list[Answer]) -> float:
    """Tokens after each call's first, over the time that call took for them."""
    return sum((answer.answer_tokens - 1) / (answer.last - answer.first) for answer in answers)


async def start_to_first_token(folder: Path) -> float:
    """Seconds from starting the process to the first token of its first call."""
    began = time.perf_counter()
    async with serve(folder) as served, aiohttp.ClientSession() as http:
        await ready(http, served.base)
        return (await ask(http, served.base, "Hello", 1)).first - began


async def rates(folder: Path) -> list[Row]:
    """Prefill and decode at each batch size, each repeated, on one running gateway."""
    rows = []
    async with serve(folder) as served, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await ready(http, served.base)
        await together(http, served.base, prompts(2, SHORT, 0), 4)
        for batch in BATCHES:
            long = [prompts(batch, LONG, batch * 100 + nth) for nth in range(REPEATS)]
            short = [prompts(batch, SHORT, -batch * 100 - nth) for nth in range(REPEATS)]
            prefill = [prefill_rate(await together(http, served.base, texts, 1)) for texts in long]
            decode = [decode_rate(await together(http, served.base, texts, ANSWER_TOKENS)) for texts in short]
            rows.append(Row(f"prefill, batch {batch}", "tokens/s", prefill))
            rows.append(Row(f"decode, batch {batch}", "tokens/s", decode))
    return rows


async def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as name:
        starts = [await start_to_first_token(Path(name)) for _ in range(REPEATS)]
        rows = await rates(Path(name))
    report("baseline", [Row("start to first token", "s", starts, less_is_better=True), *rows])


if __name__ == "__main__":
    asyncio.run(main())
