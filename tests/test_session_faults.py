"""What breaks behind the session store costs a miss or a slower answer, and nothing that was acknowledged."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from secrets import token_hex

import pytest

from sessioncache.client import StoreClient, StoreError
from tests.faulty import faulty
from tests.servers import S3_KEY, S3_SECRET, Server, redis_running
from tests.stores import client_of, prefix, restored, saved, store_running

PATIENCE_S = 40


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask until something holds; every question is a call to the store."""
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():
            pass


async def demoted(client: StoreClient, sessions: int = 1) -> None:
    """Wait until sessions are in the cold tier."""

    async def are() -> bool:
        return bool((await client.stats())["demoted"] >= sessions)

    await until(are)


@pytest.fixture
async def bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give a prefix of its own in the bucket of all tests, as an S3 address without its endpoint's host."""
    from tests.test_session_tiers import open_bucket  # noqa: PLC0415 - its fixtures are not ours

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    async with open_bucket(s3_server.url):
        return f"s3://tests/{token_hex(8)}?endpoint="


async def test_an_idle_session_goes_to_the_cold_tier_alone(tmp_path: Path, redis_server: Server) -> None:
    """And comes back from there."""
    with store_running(tmp_path, redis_url=redis_server.url, cold_after_s=0.2) as store:
        async with client_of(store) as client:
            await saved(client, prefix(2))
            await demoted(client)

            assert await restored(client, prefix(2)) == ["cold"] * 2
            assert await restored(client, prefix(2)) == ["memory"] * 2


async def test_a_session_in_redis_survives_a_killed_store(tmp_path: Path, redis_server: Server) -> None:
    """And the next store demotes it, though it never heard of it."""
    with store_running(tmp_path, redis_url=redis_server.url) as store:
        async with client_of(store) as client:
            await saved(client, prefix(2, first=100))
            store.ended(signal.SIGKILL)

    with store_running(tmp_path, redis_url=redis_server.url, cold_after_s=0.2) as store:
        async with client_of(store) as client:
            await demoted(client)
            assert await restored(client, prefix(2, first=100)) == ["cold"] * 2


async def test_a_session_that_grew_too_old_may_come_back(tmp_path: Path) -> None:
    """Its time to live deletes it, and unlike an erased one its name is free again."""
    with store_running(tmp_path, ttl_s=0.001) as store:
        async with client_of(store) as client:
            name = await saved(client, prefix(1))

            assert (await client.gc())["sessions"] == 1

            assert await client.sessions() == []
            assert await saved(client, prefix(1, first=9000)) == name


async def test_a_tier_that_is_away_is_told_once(tmp_path: Path) -> None:
    """With what to do; not again with each failure, nor with each look at what is due."""
    with redis_running(tmp_path) as redis, store_running(tmp_path, redis_url=redis.url, cold_after_s=0.1) as store:
        async with client_of(store) as client:
            redis.process.kill()
            redis.process.wait()
            found = await client.lookup(prefix(1))
            async with asyncio.timeout(PATIENCE_S):
                while "store.tier_failing" not in store.log.read_text():
                    await client.missing(found.handle)

    assert store.log.read_text().count("store.tier_failing") == 1
    assert "see that the Redis of [sessions] redis runs" in store.log.read_text()


async def test_redis_killed_and_back_loses_nothing(tmp_path: Path) -> None:
    """Calls go on meanwhile; what only memory has then is written to the cold tier as the store ends."""
    with redis_running(tmp_path) as redis, store_running(tmp_path, redis_url=redis.url) as store:
        async with client_of(store) as client:
            await saved(client, prefix(2), session="before")
            redis.process.kill()
            redis.process.wait()
            await saved(client, prefix(2, first=9000), session="while")
            assert await restored(client, prefix(2)) == ["memory"] * 2
            assert (await client.stats())["counts"]["failed.redis"] > 0
        store.ended()

    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            assert await restored(client, prefix(2)) == ["cold"] * 2
            assert await restored(client, prefix(2, first=9000)) == ["cold"] * 2


@pytest.mark.parametrize("fault", ["500", "403", "cut", "corrupt", "hold", "closed"])
async def test_a_bad_wire_to_s3_is_a_miss(tmp_path: Path, s3_server: Server, bucket: str, fault: str) -> None:
    """Never an answer, and not for longer than the wire is bad: nothing was deleted for it."""
    async with faulty(s3_server.url) as wire:
        with store_running(tmp_path, store=bucket + wire.url) as store:
            async with client_of(store) as client:
                await saved(client, prefix(1))
            store.ended()
        with store_running(tmp_path, store=bucket + wire.url) as store:
            async with client_of(store) as client:
                found = await client.lookup(prefix(1))
                assert found.tiers == ("cold",)
                wire.breaks(fault)
                with pytest.raises((StoreError, TimeoutError)):
                    async with asyncio.timeout(5):
                        await client.fetch(found.handle, 0)
                wire.breaks("")
        with store_running(tmp_path, store=bucket + wire.url) as store:
            async with client_of(store) as client:
                assert await restored(client, prefix(1)) == ["cold"]


async def test_redis_takes_what_s3_does_not(
    tmp_path: Path, s3_server: Server, redis_server: Server, bucket: str
) -> None:
    """A cold tier that is away keeps a session warm; it moves when the tier is back."""
    async with faulty(s3_server.url) as wire:
        settings = {"store": bucket + wire.url, "redis_url": redis_server.url, "cold_after_s": 0.4}
        with store_running(tmp_path, **settings) as store:
            async with client_of(store) as client:
                await saved(client, prefix(1, first=50))
                wire.breaks("500")
                assert await restored(client, prefix(1, first=50)) == ["memory"]
                wire.breaks("")
                await demoted(client)
                assert await restored(client, prefix(1, first=50)) == ["cold"]


async def test_a_full_disk_is_told_and_harms_nothing(tmp_path: Path) -> None:
    """What was stored before stays; what is not stored is not acknowledged, but may be served from memory."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(1))
            resource.prlimit(store.process.pid, resource.RLIMIT_FSIZE, (4096, 4096))

            with pytest.raises(StoreError) as refused:
                await saved(client, prefix(1, first=9000))

            assert refused.value.kind == "unreachable"
            assert await restored(client, prefix(1)) == ["memory"]
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            assert await restored(client, prefix(1)) == ["cold"]
            assert await restored(client, prefix(1, first=9000)) == []


async def test_two_stores_race_in_s3(tmp_path: Path, s3_server: Server, bucket: str) -> None:
    """The server compares and sets: no note is lost half way."""
    address = bucket + s3_server.url
    with store_running(tmp_path, store=address) as one, store_running(tmp_path, store=address) as other:
        async with client_of(one) as left, client_of(other) as right:
            both = [(left, prefix(1)), (right, prefix(2))] * 3
            names = await asyncio.gather(*(saved(client, of) for client, of in both))

            (listed,) = await left.sessions()
            assert {listed["session"]} == set(names)


@pytest.mark.parametrize("what", ["session", "tenant"])
async def test_an_erasure_that_a_tier_held_up_is_gone_on_with(tmp_path: Path, redis_server: Server, what: str) -> None:
    """It is told, what the other tiers hold goes at once, and the rest when it is asked for again."""
    async with faulty(redis_server.url) as wire:
        with store_running(tmp_path, redis_url=wire.url, cold_after_s=1000) as store:
            async with client_of(store) as client:
                name = await saved(client, prefix(2, first=77, tenant=what))
                wire.breaks("closed")
                erase = client.erase(name) if what == "session" else client.erase_tenant(what)
                with pytest.raises(StoreError) as refused:
                    await erase
                assert refused.value.kind == "unreachable"
                assert (await client.stats())["tiers"]["memory"]["chunks"] == 0
                if what == "session":
                    assert [each["erasing_chunks"] for each in await client.sessions()] == [2]
                wire.breaks("")

                await (client.erase(name) if what == "session" else client.erase_tenant(what))

                assert await client.sessions() == []
                assert await restored(client, prefix(2, first=77, tenant=what)) == []


async def test_a_note_that_s3_does_not_take_is_taken_later(
    tmp_path: Path, s3_server: Server, redis_server: Server, bucket: str
) -> None:
    """Redis has the chunks meanwhile; nobody has to say it again."""
    async with faulty(s3_server.url) as wire:
        settings = {"store": bucket + wire.url, "redis_url": redis_server.url, "cold_after_s": 2}
        with store_running(tmp_path, **settings) as store:
            async with client_of(store) as client:
                await saved(client, prefix(1, first=60), session="first")
                wire.breaks("500")
                name = await saved(client, prefix(1, first=61), session="while")
                assert (await client.stats())["notes_waiting"] == 1
                wire.breaks("")

                async def is_noted() -> bool:
                    return name in [each["session"] for each in await client.sessions()]

                await until(is_noted)
                await demoted(client, 2)
                assert await restored(client, prefix(1, first=61)) == ["cold"]


async def test_a_store_that_starts_without_s3_recovers(
    tmp_path: Path, s3_server: Server, redis_server: Server, bucket: str
) -> None:
    """It answers that the tier is away, and finds what Redis holds once it is back."""
    async with faulty(s3_server.url) as wire:
        settings = {"store": bucket + wire.url, "redis_url": redis_server.url}
        with store_running(tmp_path, **settings) as store:
            async with client_of(store) as client:
                await saved(client, prefix(1, first=70))
            store.ended(signal.SIGKILL)
        wire.breaks("closed")
        with store_running(tmp_path, **settings, cold_after_s=0.4) as store:
            async with client_of(store) as client:
                with pytest.raises(StoreError) as refused:
                    await client.lookup(prefix(1, first=70))
                assert refused.value.kind == "unreachable"
                wire.breaks("")

                await demoted(client)
                assert await restored(client, prefix(1, first=70)) == ["cold"]


async def test_a_store_killed_while_it_demotes_loses_nothing(tmp_path: Path) -> None:
    """A chunk is in the warm tier until the cold one has it whole."""
    chunks = tmp_path / "cold" / "chunks"
    with redis_running(tmp_path) as redis:
        with store_running(tmp_path, redis_url=redis.url, cold_after_s=0.2) as store:
            async with client_of(store) as client:
                await saved(client, prefix(24))

                async def has_begun() -> bool:
                    return any(path.is_file() for path in chunks.rglob("*"))

                await until(has_begun)
                store.ended(signal.SIGKILL)

        with store_running(tmp_path, redis_url=redis.url) as store:
            async with client_of(store) as client:
                assert len(await restored(client, prefix(24))) == 24
