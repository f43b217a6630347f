"""Every tier keeps the same promises."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from secrets import token_hex

import pytest

from sessioncache.problems import TierError
from sessioncache.redis import PART_BYTES, RedisSettings, open_redis
from sessioncache.s3 import S3Settings, S3Tier, open_s3
from sessioncache.tiers import FolderTier, MemoryTier, Tier
from tests.servers import S3_KEY, S3_SECRET, Server, redis_running


@asynccontextmanager
async def opened(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Tier]:
    """Open a tier of a kind, empty."""
    match kind:
        case "memory":
            yield MemoryTier(1 << 30, clock=lambda: 5.0)
        case "folder":
            yield FolderTier(request.getfixturevalue("tmp_path") / "tier")
        case "redis":
            url = request.getfixturevalue("redis_server").url
            async with open_redis(RedisSettings(url, prefix=token_hex(8) + "[*]:"), clock=lambda: 5.0) as tier:
                yield tier
        case "s3":
            async with open_bucket(request.getfixturevalue("s3_server").url) as tier:
                yield tier


@asynccontextmanager
async def open_bucket(url: str) -> AsyncIterator[S3Tier]:
    """Open a tier under a prefix of its own in the one bucket of all tests: each costs the server volumes."""
    async with open_s3(S3Settings("tests", prefix=token_hex(8) + "/", endpoint=url)) as tier:
        with suppress(tier.client.exceptions.BucketAlreadyOwnedByYou, tier.client.exceptions.BucketAlreadyExists):
            await tier.client.create_bucket(Bucket="tests")
        yield tier


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the usual chain find our test user and nobody's real files."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture(params=["memory", "folder", "redis", "s3"])
async def tier(request: pytest.FixtureRequest) -> AsyncIterator[Tier]:
    """Give each tier in turn, empty."""
    async with opened(request.param, request) as tier:
        yield tier


async def listed(tier: Tier, prefix: str = "") -> dict[str, int]:
    """List keys and sizes."""
    return {entry.key: entry.bytes async for entry in tier.entries(prefix)}


async def test_what_was_put_is_there(tier: Tier) -> None:
    """Whole, or the part that is asked for."""
    await tier.put("a/chunk-1", b"0123456789")

    assert await tier.get("a/chunk-1") == b"0123456789"
    assert await tier.get("a/chunk-1", 2, 5) == b"234"
    assert await tier.get("a/chunk-1", 8, 50) == b"89"


async def test_what_was_not_put_is_not_there(tier: Tier) -> None:
    """None, and deleting it is fine."""
    await tier.delete("a/none")

    assert await tier.get("a/none") is None
    assert await listed(tier) == {}


async def test_a_range_behind_the_end_is_empty(tier: Tier) -> None:
    """And so is one that ends before it begins."""
    await tier.put("a/x", b"0123")

    assert [await tier.get("a/x", 4, 9), await tier.get("a/x", 2, 1)] == [b"", b""]


async def test_large_values_come_back_whole_and_in_parts(tier: Tier) -> None:
    """However a tier cuts them."""
    stored = os.urandom(2 * PART_BYTES + 5)
    await tier.put("a/large", stored)

    assert await tier.get("a/large") == stored
    assert await tier.get("a/large", PART_BYTES - 3, 2 * PART_BYTES + 1) == stored[PART_BYTES - 3 : 2 * PART_BYTES + 1]
    assert await tier.get("a/large", 2 * PART_BYTES) == stored[2 * PART_BYTES :]


async def test_putting_again_replaces(tier: Tier) -> None:
    """And counts once."""
    await tier.put("a/x", b"old")
    await tier.put("a/x", b"newer")

    assert await listed(tier) == {"a/x": 5}


async def test_several_sizes_are_told_at_once(tier: Tier) -> None:
    """In the order in which they were asked for, None for what is not there."""
    await tier.put("a/x", b"0123")
    await tier.put("a/z", b"0")

    assert await tier.sizes(["a/x", "a/y", "a/z"]) == [4, None, 1]
    assert await tier.sizes([]) == []


async def test_a_tier_tells_how_large_a_value_is(tier: Tier) -> None:
    """Without giving it; None for one that is not there."""
    await tier.put("a/x", b"12345")

    assert [await tier.size("a/x"), await tier.size("a/y")] == [5, None]


@pytest.mark.parametrize("kind", ["folder", "s3"])
async def test_what_two_change_one_changes_first(kind: str, request: pytest.FixtureRequest) -> None:
    """Who has seen an older state sets nothing, and who makes a key makes it once."""
    async with opened(kind, request) as tier:
        assert isinstance(tier, FolderTier | S3Tier)
        made = [await tier.swap("a/x", value, None) for value in (b"1", b"2")]
        seen = await tier.tagged("a/x")
        assert seen is not None
        changed = [await tier.swap("a/x", value, seen[1]) for value in (b"3", b"4")]

        assert (made, seen[0], changed) == ([True, False], b"1", [True, False])
        assert await tier.get("a/x") == b"3"
        assert (await tier.tagged("a/none"), await tier.swap("a/none", b"5", seen[1])) == (None, False)


async def test_keys_are_listed_by_how_they_begin(tier: Tier) -> None:
    """With their sizes and when they were written."""
    for key in ("a/1", "a/2", "b/1"):
        await tier.put(key, b"x")
    await tier.delete("a/2")

    assert await listed(tier, "a/") == {"a/1": 1}
    assert [entry.written_s > 0 async for entry in tier.entries("b/")] == [True]


async def test_memory_drops_what_was_used_longest_ago() -> None:
    """To stay within its bound, which includes everything it holds."""
    tier = MemoryTier(10, clock=lambda: 0.0)
    for key in "abc":
        await tier.put(key, b"123")
    await tier.get("a")

    await tier.put("d", b"1234")

    assert (await listed(tier), tier.held_bytes, tier.dropped) == ({"a": 3, "c": 3, "d": 4}, 10, 1)


async def test_memory_refuses_what_alone_is_too_large() -> None:
    """Instead of dropping everything for it."""
    tier = MemoryTier(10, clock=lambda: 0.0)
    await tier.put("a", b"123")

    with pytest.raises(TierError):
        await tier.put("b", b"x" * 11)

    assert await tier.get("a") == b"123"


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".hidden", "a/b\0", "a b"])
async def test_a_key_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    """Whoever chose it."""
    with pytest.raises(TierError, match="is no key"):
        await FolderTier(tmp_path / "tier").put(key, b"x")


async def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    """So are the folders above them."""
    await FolderTier(tmp_path / "tier").put("a/x", b"kv")

    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tier").rglob("*")]
    assert all(mode & 0o077 == 0 for mode in modes)


async def test_a_writer_that_died_leaves_nothing_that_is_found(tmp_path: Path) -> None:
    """What is half written is no entry, and the next start sweeps it."""
    tier = FolderTier(tmp_path)
    await tier.put("a/x", b"kv")
    (tmp_path / ".parts/0123").write_bytes(b"ha")

    assert await listed(tier) == {"a/x": 2}
    await tier.sweep()
    assert list((tmp_path / ".parts").iterdir()) == []


def files(folder: Path) -> list[str]:
    """Name every file below a folder."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """With the system's reason, and leaves nothing behind."""
    (tmp_path / "a").write_text("a file where a folder should be")

    with pytest.raises(TierError, match=os.strerror(17) + "|" + os.strerror(20)):
        await FolderTier(tmp_path).put("a/x", b"kv")

    assert files(tmp_path) == ["a"]


async def test_what_redis_holds_expires(redis_server: Server) -> None:
    """Every key has a time to live, so that the server may evict any of them."""
    settings = RedisSettings(redis_server.url, prefix=token_hex(8), ttl_s=100)
    async with open_redis(settings, clock=lambda: 5.0) as tier:
        await tier.put("a/x", b"kv")

        assert 99_000 < await tier.client.pttl(settings.prefix + "a/x") <= 100_000


async def test_a_redis_that_dies_is_an_error_and_works_again_when_it_is_back(tmp_path: Path) -> None:
    """Through the same tier."""
    with redis_running(tmp_path) as server:
        async with open_redis(RedisSettings(server.url), clock=lambda: 5.0) as tier:
            await tier.put("a/x", b"kv")
            server.process.kill()
            server.process.wait()

            with pytest.raises(TierError, match="Redis"):
                await tier.get("a/x")

            with redis_running(tmp_path, "--port", server.url.split(":")[-1].split("/")[0]):
                await tier.put("a/x", b"again")
                assert await tier.get("a/x") == b"again"


async def test_a_value_of_which_a_part_is_gone_is_not_there(redis_server: Server) -> None:
    """Instead of being shorter than it was."""
    settings = RedisSettings(redis_server.url, prefix=token_hex(8))
    async with open_redis(settings, clock=lambda: 5.0) as tier:
        await tier.put("a/x", b"x" * (PART_BYTES + 1))
        await tier.client.hdel(settings.prefix + "a/x", "0")

        assert await tier.get("a/x") is None


async def test_s3_says_what_the_server_answered(s3_server: Server) -> None:
    """Its code, and no credentials."""
    async with open_s3(S3Settings("no-such-bucket", endpoint=s3_server.url)) as tier:
        with pytest.raises(TierError, match="NoSuchBucket") as caught:
            await tier.get("a/x")

    assert S3_SECRET not in str(caught.value)


async def test_s3_with_a_wrong_secret_is_an_error(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a miss."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    async with open_s3(S3Settings("bucket", endpoint=s3_server.url)) as tier:
        with pytest.raises(TierError, match="403"):
            await tier.get("a/x")


async def test_an_s3_server_that_is_not_there_is_an_error() -> None:
    """Within the timeouts."""
    async with open_s3(S3Settings("bucket", endpoint="http://127.0.0.1:1", attempts=1)) as tier:
        with pytest.raises(TierError, match="S3"):
            await tier.get("a/x")
