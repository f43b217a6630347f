"""Sessions end to end: the real worker and the real store, killed and started again; answers stay the same."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from backends.api import Message
from tests.keeping import Answered, Worker, keeping, story
from tests.stores import RunningStore, store_running

FIRST = (Message("system", story(30)), Message("user", "Which ship came first?"))


async def test_a_conversation_goes_on_after_its_worker_was_killed(tmp_path: Path) -> None:
    """The next worker restores what the first one computed, and answers with the same tokens."""
    with store_running(tmp_path) as store:
        async with keeping(store.socket, tmp_path) as worker:
            first = await worker.ask(FIRST, session="s")
            second = (*FIRST, Message("assistant", first.text), Message("user", "And then?"))
            computed = await worker.ask(second, tenant="somebody-else")
            await worker.counted("saves", 2)
            await worker.killed()
        async with keeping(store.socket, tmp_path) as worker:
            restored = await worker.ask(second, session="s")
            counts = await worker.counted("rechecks")

    assert (counts.recheck_tokens, counts.recheck_disagreements) == (16, 0)
    assert (restored.text, restored.usage.prompt_tokens) == (computed.text, computed.usage.prompt_tokens)
    assert computed.usage.cached_tokens == 0
    assert restored.usage.restored_tokens >= 512
    assert (restored.usage.cached_tokens, restored.usage.restored_from) == (restored.usage.restored_tokens, "memory")
    assert counts.restored_tokens == restored.usage.restored_tokens


async def computed(folder: Path, store: RunningStore) -> tuple[tuple[Message, ...], str]:
    """Let a worker answer and save a first turn, and compute the second for somebody else; then kill the worker."""
    async with keeping(store.socket, folder) as worker:
        first = await worker.ask(FIRST, session="s")
        second = (*FIRST, Message("assistant", first.text), Message("user", "And then?"))
        answered = await worker.ask(second, tenant="somebody-else")
        await worker.counted("saves", 2)
        await worker.killed()
    return second, answered.text


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_store_that_dies_or_hangs_costs_time_and_no_answer(tmp_path: Path, end: signal.Signals) -> None:
    """What cannot be fetched is computed; the failure is counted."""
    with store_running(tmp_path) as store:
        second, expected = await computed(tmp_path, store)
        async with keeping(store.socket, tmp_path) as worker:
            await worker.ask(FIRST[1:], session="short")
            store.process.send_signal(end)
            answered = await worker.ask(second, session="s")
            counts = await worker.counted("restore_failures")
            store.ended(signal.SIGKILL)

    assert answered.text == expected
    assert (answered.usage.restored_tokens, counts.restores) == (0, 0)


async def test_a_corrupt_chunk_is_computed_again(tmp_path: Path) -> None:
    """Whatever lies in the store, the answer is the same."""
    with store_running(tmp_path) as store:
        second, expected = await computed(tmp_path, store)
    for path in (tmp_path / "cold").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    with store_running(tmp_path) as store:
        async with keeping(store.socket, tmp_path) as worker:
            answered = await worker.ask(second, session="s")

    assert (answered.text, answered.usage.restored_tokens) == (expected, 0)


async def test_a_worker_killed_while_it_saves_leaves_nothing_wrong(tmp_path: Path) -> None:
    """The next one restores what was saved whole, computes the rest, and saves again."""
    with store_running(tmp_path) as store:
        async with keeping(store.socket, tmp_path) as worker:
            first = await worker.ask(FIRST, session="s")
            await worker.killed()
        async with keeping(store.socket, tmp_path) as worker:
            again = await worker.ask(FIRST, session="s")
            await worker.counted("saves")

    assert again.text == first.text


async def each(worker: Worker, turns: Sequence[Sequence[Message]]) -> list[Answered]:
    """Ask the next turns of several sessions, eight at once."""
    free = asyncio.Semaphore(8)

    async def one(number: int) -> Answered:
        async with free:
            return await worker.ask(turns[number], f"c{number}", session=str(number))

    return await asyncio.gather(*(one(number) for number in range(len(turns))))


@pytest.mark.slow
async def test_more_sessions_than_memory_are_all_continued(tmp_path: Path) -> None:
    """Of twenty conversations, eight at once, where four fit, each second turn finds its first."""
    with store_running(tmp_path) as store:
        async with keeping(store.socket, tmp_path, kv_memory_bytes=34 << 20) as worker:
            asked = [(Message("user", story(22, f"harbour {number}")),) for number in range(20)]
            first = await each(worker, asked)
            await worker.counted("saves", 20)
            turns = [
                (*before, Message("assistant", answer.text), Message("user", "Go on."))
                for before, answer in zip(asked, first, strict=True)
            ]
            answered = await each(worker, turns)
            counts = await worker.counted("restores")

    assert [each.usage.cached_tokens >= 256 for each in answered] == [True] * 20
    assert sum(each.usage.restored_tokens > 0 for each in answered) >= 16
    assert counts.dropped_saves == 0
