"""Measure the session store over its socket: finding and fetching 16 chunks of 1.5 MB by tier, in time and in CPU time.

CPU time is the store's and this client's together, as both stand in a restored answer's way. Memory is kept too small
to help where another tier is measured. REPEATS sets the samples; a tier whose server is not installed is left out.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory

from table import Row, report

from sessioncache.client import Found, Prefix, StoreClient
from sessioncache.s3 import S3Settings, open_s3

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers import S3_KEY, S3_SECRET, redis_running, s3_running
from tests.stores import RunningStore, store_running

REPEATS = int(os.environ.get("REPEATS", "15"))
CHUNKS, LAYERS, LAYER_BYTES = 16, 30, 50_000
WINDOW = 4  # as many chunks as a worker asks for at once
GOAL_CPU_MS = 40
LITTLE, MUCH = 2 << 20, 64 << 20
PREFIX = Prefix("ada", "model", "exact-1", array("I", range(CHUNKS * 256)))


async def saved(client: StoreClient) -> None:
    """Save the prefix and note a session of it."""
    found = await client.lookup(PREFIX)
    for chunk in range(CHUNKS):
        await client.save(found.handle, chunk, [os.urandom(LAYER_BYTES) for _ in range(LAYERS)])
    await client.note(found.handle, "s", summary={})
    await client.close(found.handle)


async def fetched(client: StoreClient, found: Found) -> None:
    """Fetch all chunks, as many at once as a worker does."""
    free = asyncio.Semaphore(WINDOW)

    async def fetch(chunk: int) -> None:
        async with free:
            layers = await client.fetch(found.handle, chunk)
            assert sum(map(len, layers)) == LAYERS * LAYER_BYTES

    await asyncio.gather(*map(fetch, range(CHUNKS)))


def cpu_ms(pid: int) -> float:
    """Return the CPU time of all threads of a process so far."""
    spent = [path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(int, spent)) / 1e6


class Figures:
    """What was measured of one thing: wall and CPU milliseconds."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []

    @contextmanager
    def sample(self) -> Iterator[None]:
        """Measure what is done inside."""
        spent_ms, began = cpu_ms(self._pid) + cpu_ms(os.getpid()), time.perf_counter()
        yield
        self.wall_ms.append((time.perf_counter() - began) * 1000)
        self.cpu_ms.append(cpu_ms(self._pid) + cpu_ms(os.getpid()) - spent_ms)


async def measured(store: RunningStore, tier: str) -> tuple[Figures, Figures]:
    """Save, then find and fetch again and again."""
    lookups, fetches = Figures(store.process.pid), Figures(store.process.pid)
    client = await StoreClient.connect(store.socket)
    await saved(client)
    for _ in range(REPEATS):
        with lookups.sample():
            found = await client.lookup(PREFIX)
        assert len(found.tiers) == CHUNKS
        assert sum(each == tier for each in found.tiers) >= CHUNKS - 1, found.tiers
        with fetches.sample():
            await fetched(client, found)
        await client.close(found.handle)
    await client.aclose()
    return lookups, fetches


async def first_lookups(start: Callable[[], object], count: int) -> list[float]:
    """Return how long a store takes that has just started, and knows nothing of the tier, to find the prefix."""
    took: list[float] = []
    for _ in range(count):
        with start() as store:  # type: ignore[attr-defined]
            client = await StoreClient.connect(store.socket)
            await client.stats()
            began = time.perf_counter()
            assert len((await client.lookup(PREFIX)).tiers) == CHUNKS
            took.append((time.perf_counter() - began) * 1000)
            await client.aclose()
    return took


async def bucket_made(url: str) -> None:
    """Make the bucket that is measured."""
    async with open_s3(S3Settings("bench", endpoint=url)) as tier:
        await tier.client.create_bucket(Bucket="bench")


def rows_of(name: str, lookups: Figures, fetches: Figures) -> list[Row]:
    """Write what was measured of a tier."""
    goal = GOAL_CPU_MS if name == "memory" else None
    return [
        Row(f"lookup of {CHUNKS} chunks, {name}", "ms", lookups.wall_ms),
        Row(f"fetch of {CHUNKS} chunks, {name}", "ms", fetches.wall_ms),
        Row(f"the same, CPU of both sides, {name}", "ms", fetches.cpu_ms, goal=goal, less_is_better=True),
    ]


def main() -> None:
    """Measure every tier that there is."""
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        os.environ |= {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}

        def measure(name: str, tier: str, **settings: object) -> None:
            (place := folder / token_hex(4)).mkdir()
            with store_running(place, **settings) as store:
                rows.extend(rows_of(name, *asyncio.run(measured(store, tier))))
            if tier == "cold":
                again = asyncio.run(first_lookups(lambda: store_running(place, **settings), 3))
                rows.append(Row(f"first lookup after a start, {name}", "ms", again))

        measure("memory", "memory", memory_bytes=MUCH)
        measure("folder", "cold", memory_bytes=LITTLE)
        if shutil.which("redis-server"):
            redis = stack.enter_context(redis_running(folder))
            measure("Redis", "redis", memory_bytes=LITTLE, redis_url=redis.url)
        if shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
            s3 = stack.enter_context(s3_running(folder))
            asyncio.run(bucket_made(s3.url))
            measure("S3", "cold", memory_bytes=LITTLE, store=f"s3://bench/{token_hex(4)}?endpoint={s3.url}")
    report("store", rows)


if __name__ == "__main__":
    main()
