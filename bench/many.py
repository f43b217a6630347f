"""Many conversations against little memory: 200 of them, where the KV cache holds 20. Nothing may be lost or wrong.

    make bench-many                    # about 8 minutes
    QUICK=1 make bench-many            # 60 conversations against memory for 6: 3 minutes
    CODEC=balanced make bench-many     # a calibrated codec; with it answers may differ, and how many do is told

Each conversation asks, and all of them ask again before any asks a third time, so that at its second turn each has long
been evicted. A gateway without sessions and with room for everything answers the same second turns: with the codec
`exact` both give the same tokens. The last rows say what saving costs the steps beside it: tokens a second of four
streams while chunks are written, and while none are, in turn.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
from engine import QUICK
from served import ready, serve
from sessions import CODEC, MORE, ids, profiles
from table import Row, report

SESSIONS, HELD = (60, 6) if QUICK else (200, 20)
TOKENS, ANSWER = 768, 8
TOKEN_BYTES = 23_040  # of fp16 KV in the embedded model
AT_ONCE = 8
REPEATS = int(os.environ.get("REPEATS", "3" if QUICK else "7"))
STREAMS, STREAMED, LONG = 4, 120, 2048


@dataclass(frozen=True, slots=True)
class Turn:
    """What one call brought: its text, how many tokens of its prompt came from where, and milliseconds to the end."""

    text: str
    cached: int
    told: str
    took_ms: float


async def ask(http: aiohttp.ClientSession, base: str, prompt: list[int], session: str, count: int = ANSWER) -> Turn:
    """Answer one turn; an error ends the benchmark."""
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}
    began = time.perf_counter()
    async with http.post(f"{base}/v1/completions", json=body, headers={"x-session-id": session}) as answer:
        told = orjson.loads(await answer.read())
        assert answer.status == 200, told
    cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
    took_ms = 1000 * (time.perf_counter() - began)
    return Turn(told["choices"][0]["text"], cached, answer.headers.get("x-tidegate-cache", ""), took_ms)


async def each(http: aiohttp.ClientSession, base: str, more: int) -> list[Turn]:
    """Let every conversation take a turn, a few at once."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Turn:
        async with free:
            return await ask(http, base, ids(TOKENS + more, 500 + number), f"many-{number}")

    return await asyncio.gather(*(one(number) for number in range(SESSIONS)))


def settings(kv_bytes: int, *, is_kept: bool) -> str:
    """Give the KV cache so much memory, and keep sessions or not."""
    kept = f'enabled = true\ncodec = "{CODEC}"\nwrite_behind = "1s"\nmin_restore_tokens = 256\n' if is_kept else ""
    if is_kept and CODEC != "exact":
        kept += f'profiles = "{profiles()}"\n'
    return f'\n[batching]\nkv_memory = "{kv_bytes >> 20}MiB"\n[sessions]\n{kept or "enabled = false" + chr(10)}'


async def turns(*, is_kept: bool) -> tuple[list[Turn], list[Turn], int]:
    """Run two turns of every conversation; return them, and the bytes that lie in the store between."""
    held = HELD if is_kept else SESSIONS + 1
    more = settings(held * (TOKENS + MORE + ANSWER + 32) * TOKEN_BYTES, is_kept=is_kept)
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as name:
        async with serve(Path(name), f'{more}state_dir = "{name}/state"\n') as served, aiohttp.ClientSession() as http:
            await ready(http, served.base)
            first = await each(http, served.base, 0)
            stored = stored_bytes(Path(name)) if is_kept else 0
            return first, await each(http, served.base, MORE), stored


def stored_bytes(folder: Path) -> int:
    """Sum up the chunks in the folder tier."""
    return sum(file.stat().st_size for file in (folder / "state/sessions/chunks").rglob("*") if file.is_file())


async def pace(http: aiohttp.ClientSession, base: str, salt: int) -> float:
    """Tokens a second of a few streams."""
    began = time.perf_counter()
    prompts = [ids(16, salt + number) for number in range(STREAMS)]
    await asyncio.gather(*(ask(http, base, prompt, f"pace-{salt}", STREAMED) for prompt in prompts))
    return STREAMS * STREAMED / (time.perf_counter() - began)


async def beside_saving() -> tuple[list[float], list[float]]:
    """Pace the streams with and without chunks being written meanwhile, in turn."""
    calm: list[float] = []
    saving: list[float] = []
    more = settings(1 << 30, is_kept=True).replace('write_behind = "1s"', 'write_behind = "100ms"')
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as name:
        async with serve(Path(name), f'{more}state_dir = "{name}/state"\n') as served, aiohttp.ClientSession() as http:
            await ready(http, served.base)
            for nth in range(REPEATS):
                await settled(Path(name))
                calm.append(await pace(http, served.base, 10_000 + 10 * nth))
                for part in range(3):
                    await ask(http, served.base, ids(LONG, 20_000 + 10 * nth + part), f"long-{nth}-{part}", 1)
                saving.append(await pace(http, served.base, 30_000 + 10 * nth))
    return calm, saving


async def settled(folder: Path) -> None:
    """Wait until nothing has been written for a second."""
    before = -1
    while (now := stored_bytes(folder)) != before:
        before = now
        await asyncio.sleep(1)


def outcome(first: Sequence[Turn], kept: Sequence[Turn], control: Sequence[Turn], stored: int) -> list[Row]:
    """Say what became of the second turns."""
    restored = sum("restored=" in turn.told for turn in kept)
    equal = sum(a.text == b.text for a, b in zip(kept, control, strict=True))
    per_session = stored / SESSIONS
    raw = TOKENS // 256 * 256 * TOKEN_BYTES
    return [
        Row(f"{SESSIONS} conversations, memory for {HELD}: answered", "calls", [len(first) + len(kept)]),
        Row("second turns with a cached prefix", "%", [100 * sum(t.cached > 0 for t in kept) / SESSIONS], goal=100),
        Row("second turns restored from the store", "%", [100 * restored / SESSIONS]),
        Row(
            "second turns equal to those never evicted",
            "%",
            [100 * equal / SESSIONS],
            goal=100 if CODEC == "exact" else None,
        ),
        Row("first turn", "ms", [t.took_ms for t in first], less_is_better=True),
        Row(
            "second turn",
            "ms",
            [t.took_ms for t in kept],
            [t.took_ms for t in first],
            "first turn",
            less_is_better=True,
        ),
        Row("an idle conversation", "bytes", [per_session], [raw], "its KV in fp16", less_is_better=True),
    ]


def main() -> None:
    """Measure and report."""
    first, kept, stored = asyncio.run(turns(is_kept=True))
    _, control, _ = asyncio.run(turns(is_kept=False))
    calm, saving = asyncio.run(beside_saving())
    pace_row = Row("streams while chunks are written", "tokens/s", saving, calm, "while none are", ratio_goal=0.98)
    report("many", [*outcome(first, kept, control, stored), pace_row])


if __name__ == "__main__":
    main()
