"""Every tier keeps the same promises."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sessioncache.problems import TierError
from sessioncache.tiers import FolderTier, MemoryTier, Tier


@pytest.fixture(params=["memory", "folder"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Tier:
    """Give each tier in turn, empty."""
    return MemoryTier(1 << 20, clock=lambda: 5.0) if request.param == "memory" else FolderTier(tmp_path / "tier")


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


async def test_putting_again_replaces(tier: Tier) -> None:
    """And counts once."""
    await tier.put("a/x", b"old")
    await tier.put("a/x", b"newer")

    assert await listed(tier) == {"a/x": 5}


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
