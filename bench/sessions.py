"""What a conversation costs that comes back: restored from each tier against computed again, and beside llama.cpp.

    make bench-sessions                    # about 10 minutes
    QUICK=1 make bench-sessions            # two lengths, fewer repetitions: 3 minutes
    CODEC=balanced make bench-sessions     # a calibrated codec instead of exact; calibrates first if need be

A first turn of so many tokens is answered and written to a tier; then everything is stopped, gateway, worker and store
(for the tier `memory` only the worker, as the store's memory is what is measured), and started again. The second turn
is the first and 16 tokens more. Time to first token is what the client sees through the public port, whose answer also
says what was restored and from where. llama.cpp does the same on the same file: a sequence saved to disk as its server
saves a slot, restored by a new process, and the same 16 tokens; its time has no HTTP and no start in it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import llamacpp
import orjson
from aiobotocore.session import get_session
from engine import SOURCE, THREADS, running
from served import Served, ready, serve
from table import Row, report

sys.path.insert(0, str(Path(__file__).parents[1]))
from backends.engine.weights import open_checkpoint
from tests.servers import S3_KEY, S3_SECRET, redis_running, s3_running

QUICK = bool(os.environ.get("QUICK"))
REPEATS = int(os.environ.get("REPEATS", "2" if QUICK else "5"))
LENGTHS = (1024, 4096) if QUICK else (1024, 2048, 4096, 7680)
CODEC = os.environ.get("CODEC", "exact")
MORE = 16
GOAL_RATIO, GOAL_TOKENS = 20, 4096
BUCKET = "sessions"
TIMES = 'write_behind = "100ms"\nmin_restore_tokens = 256\nrecheck_every = 0\n'


@dataclass(frozen=True, slots=True)
class Place:
    """A tier with the settings that make it the one a conversation is restored from."""

    tier: str
    name: str
    settings: str
    is_kept: bool = True  # over a restart of everything

    @property
    def shown(self) -> tuple[str, ...]:
        """The tiers under which chunks are shown that lie here: what memory holds is in Redis too by then."""
        return ("memory", "redis") if self.tier == "redis" else (self.tier,)


@dataclass(slots=True)
class Seen:
    """Milliseconds to the first token: restored by place, computed again, and llama.cpp's."""

    restored: dict[str, list[float]] = field(default_factory=dict)
    computed: list[float] = field(default_factory=list)
    llama_restored: list[float] = field(default_factory=list)
    llama_computed: list[float] = field(default_factory=list)


def ids(count: int, salt: int) -> list[int]:
    """Give a prompt of exactly so many tokens that no other prompt begins like."""
    return [(salt * 7919 + at * 37 + 11) % 40000 for at in range(count)]


async def first_token_ms(http: aiohttp.ClientSession, base: str, prompt: list[int], session: str) -> tuple[float, str]:
    """Ask for one token; return how long it took and what the answer says of the cache."""
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": True}
    began = time.perf_counter()
    async with http.post(f"{base}/v1/completions", json=body, headers={"x-session-id": session}) as answer:
        if answer.status != 200:
            sys.exit(f"bench: {answer.status} {await answer.text()}")
        async for line in answer.content:
            if line.startswith(b"data: {") and orjson.loads(line[6:])["choices"]:
                return 1000 * (time.perf_counter() - began), answer.headers.get("x-tidegate-cache", "")
    sys.exit("bench: the answer had no token")


@asynccontextmanager
async def gateway(folder: Path, place: Place) -> AsyncIterator[tuple[Served, aiohttp.ClientSession]]:
    """Run a gateway that keeps sessions in this place, ready to be asked."""
    sessions = f'\n[sessions]\ncodec = "{CODEC}"\nstate_dir = "{folder}/state"\n{TIMES}{place.settings}'
    if CODEC != "exact":
        sessions += f'profiles = "{profiles()}"\n'
    async with serve(folder, sessions) as served, aiohttp.ClientSession() as http:
        await ready(http, served.base)
        await first_token_ms(http, served.base, ids(64, 1), "warm")
        yield served, http


async def stored(http: aiohttp.ClientSession, served: Served, folder: Path, *, place: Place, chunks: int) -> None:
    """Wait until so many chunks lie where they are to be restored from."""
    token = (folder / "run" / "admin-token").read_text().strip()
    seen: list[str] = []
    for _ in range(3000):
        told = await asked(http, f"{served.admin}/admin/sessions", token)
        shown = [
            await asked(http, f"{served.admin}/admin/sessions/{one['session']}", token) for one in told["sessions"]
        ]
        seen = [str(chunk["tier"]) for one in shown for chunk in one["chunks"]]
        if sum(tier in place.shown for tier in seen) >= chunks:
            return
        await asyncio.sleep(0.05)
    sys.exit(f"bench: {chunks} chunks should lie in {place.name}, but there are {seen}")


async def asked(http: aiohttp.ClientSession, url: str, token: str) -> dict[str, Any]:
    """Ask the admin port."""
    async with http.get(url, headers={"authorization": f"Bearer {token}"}) as answer:
        return dict(orjson.loads(await answer.read()))


async def kill_worker(http: aiohttp.ClientSession, served: Served) -> None:
    """Kill the worker as a crash would, and wait for the next."""
    killed = worker_of(served)
    os.kill(killed, signal.SIGKILL)
    for _ in range(6000):
        if worker_of(served) not in {killed, 0}:
            return await ready(http, served.base)
        await asyncio.sleep(0.01)
    sys.exit("bench: no new worker came")


def worker_of(served: Served) -> int:
    """Return the pid of a gateway's worker, 0 while there is none."""
    children = Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()
    return next((int(p) for p in children if b"backends.worker" in Path(f"/proc/{p}/cmdline").read_bytes()), 0)


async def restored_ms(place: Place, length: int, nth: int) -> float:
    """Answer a first turn, stop everything, start again, and time the second turn."""
    prompt = ids(length + MORE, 100 * length + nth)
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as name:
        folder = Path(name)
        async with gateway(folder, place) as (served, http):
            await first_token_ms(http, served.base, prompt[:length], f"s{length}")
            await stored(http, served, folder, place=place, chunks=length // 256)
            if not place.is_kept:
                await kill_worker(http, served)
                return checked(*await first_token_ms(http, served.base, prompt, f"s{length}"), place, length)
        async with gateway(folder, place) as (served, http):
            return checked(*await first_token_ms(http, served.base, prompt, f"s{length}"), place, length)


def checked(took_ms: float, told: str, place: Place, length: int) -> float:
    """Return the time if the answer says that it was restored from where it should be."""
    if f"restored={length}" not in told or place.tier not in told:
        sys.exit(f"bench: {length} tokens from {place.name}: the answer says {told!r}")
    return took_ms


async def computed_ms(place: Place, length: int) -> list[float]:
    """Time prompts of the same length that nobody has seen."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as name:
        async with gateway(Path(name), place) as (served, http):
            salts = [90_001 + length + nth for nth in range(REPEATS)]
            return [(await first_token_ms(http, served.base, ids(length + MORE, s), f"n{s}"))[0] for s in salts]


def llama_ms(length: int) -> tuple[float, float]:
    """Save in one process of llama.cpp, restore in the next; milliseconds of restoring and of computing."""
    command = llamacpp.ready().command(Path(str(open_checkpoint(SOURCE).source.files[0])), THREADS)
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        file = Path(folder) / "state"
        with running(command) as program:
            program.ask(f"save {length} {file}")
        with running(command) as program:
            program.ask("prefill 64")
            return program.ask(f"restore {length} {MORE} {file}")[0], program.ask(f"prefill {length + MORE}")[0]


def profiles() -> Path:
    """Calibrate the embedded model once, into build/bench/profiles."""
    folder = Path("build/bench/profiles").absolute()
    if not folder.exists():
        command = [Path(sys.executable).parent / "tidegate", "sessions", "calibrate", SOURCE, "--profiles", folder]
        subprocess.run(command, check=True)
    return folder


@contextmanager
def places(stack: ExitStack) -> Iterator[list[Place]]:
    """Start Redis and S3; give every tier."""
    folder = Path(
        stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-bench-", ignore_cleanup_errors=True))
    )
    for name in ("redis", "s3"):
        (folder / name).mkdir()
    key = folder / "master.keys"
    key.write_text(f"bench:{os.urandom(32).hex()}\n")
    key.chmod(0o600)
    redis = stack.enter_context(redis_running(folder / "redis"))
    s3 = stack.enter_context(s3_running(folder / "s3"))
    asyncio.run(make_bucket(s3.url))
    os.environ |= {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
    sealed = f'encryption_key_file = "{key}"\n'
    cold = 'cold_after = "1s"\n'
    yield [
        Place("memory", "host memory (worker killed)", "", is_kept=False),
        Place("redis", "Redis", f'{sealed}redis = "{redis.url}"\n'),
        Place("cold", "folder", cold),
        Place("cold", "S3", f'{sealed}{cold}store = "s3://{BUCKET}/bench"\nendpoint = "{s3.url}"\n'),
    ]


async def make_bucket(url: str) -> None:
    """Make the bucket."""
    keys = {"aws_access_key_id": S3_KEY, "aws_secret_access_key": S3_SECRET, "region_name": "us-east-1"}
    async with get_session().create_client("s3", endpoint_url=url, **keys) as client:
        await client.create_bucket(Bucket=BUCKET)


def measure(tiers: list[Place], length: int) -> Seen:
    """Measure one length, everything in turn."""
    seen = Seen(computed=asyncio.run(computed_ms(tiers[0], length)))
    for nth in range(REPEATS):
        for place in tiers:
            seen.restored.setdefault(place.name, []).append(asyncio.run(restored_ms(place, length, nth)))
        restored, computed = llama_ms(length)
        seen.llama_restored.append(restored)
        seen.llama_computed.append(computed)
    return seen


def rows(length: int, seen: Seen) -> Iterator[Row]:
    """Set restoring beside computing, and both beside llama.cpp."""
    goal = GOAL_RATIO if length == GOAL_TOKENS else None
    for name, samples in seen.restored.items():
        yield times(f"{length} tokens from {name}", seen.computed, samples, "computed again", goal)
    fastest = min(seen.restored.values(), key=min)
    yield times(f"{length} tokens, our fastest tier", seen.llama_restored, fastest, "llama.cpp, slot from a file", None)
    yield times(f"{length} tokens, computed", seen.llama_computed, seen.computed, "llama.cpp, computed", None)


def times(name: str, slower: list[float], samples: list[float], peer: str, goal: float | None) -> Row:
    """Compare rates, first tokens a second, so that the ratio says how many times faster ours is."""
    ours, theirs = [1000 / each for each in samples], [1000 / each for each in slower]
    row = Row(f"{name}: first token", "1/s", ours, peer_samples=theirs, peer_name=peer, ratio_goal=goal)
    told = f"{1000 / row.ours:.0f} ms, {peer} {1000 / (row.peer or 1):.0f} ms, {row.ratio:.1f} times faster"
    print(f"{name}: {told}", flush=True)
    return row


def main() -> None:
    """Measure and report."""
    with ExitStack() as stack, places(stack) as tiers:
        report("sessions", [row for length in LENGTHS for row in rows(length, measure(tiers, length))])


if __name__ == "__main__":
    main()
