"""The session store's rules: when sessions move, when a tier is left alone, which keys seal what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sessioncache.breaker import FAILURES, REST_S, Breaker
from sessioncache.erasing import Erasing
from sessioncache.ledger import Ledger
from sessioncache.moves import JUMP_S, Moves, due, has_jumped
from sessioncache.problems import TierError, VaultError
from sessioncache.sessions import Sessions, Warm
from sessioncache.settings import SettingsError, StoreSettings, cold_of
from sessioncache.shelf import Held, Shelf
from sessioncache.tenants import Tenants, master_of
from sessioncache.tiers import FolderTier, MemoryTier
from sessioncache.vault import Master

OLD, NEW = "1:" + "11" * 32, "2:" + "22" * 32


def sessions_of(shelf: Shelf, ledger: Ledger, wall: Callable[[], float]) -> Sessions:
    """Make what knows sessions."""
    return Sessions(shelf, ledger, Erasing(shelf, ledger, wall, lambda: 0.0), wall, lambda: 0.0)


def test_idle_sessions_are_due_oldest_first() -> None:
    """And under pressure the oldest eighth, though it is not idle for long."""
    warm = {("t", str(used)): Warm((), float(used)) for used in (30, 10, 20)}

    assert due(warm, 40.0, 20.0, is_pressed=False) == [("t", "10"), ("t", "20")]
    assert due(warm, 40.0, 99.0, is_pressed=False) == []
    assert due(warm, 40.0, 99.0, is_pressed=True) == [("t", "10")]


@pytest.mark.parametrize(("wall_s", "is_jump"), [(60.0, False), (60.0 + 2 * JUMP_S, True), (60.0 - 2 * JUMP_S, True)])
def test_a_clock_that_jumped_is_seen(wall_s: float, *, is_jump: bool) -> None:
    """Forwards and backwards, by what a clock that never jumps says."""
    assert has_jumped(wall_s, 60.0) is is_jump


def test_a_tier_that_fails_is_left_alone_for_a_while() -> None:
    """After some failures in a row; it is asked again later, and one answer mends it."""
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.allows(10.0)
        breaker = breaker.failed(10.0)

    assert not breaker.allows(10.0 + REST_S - 0.1)
    assert breaker.allows(10.0 + REST_S)
    assert breaker.worked().allows(10.0)


@pytest.mark.parametrize("shared", [{"redis_url": "redis://h"}, {"store": "s3://bucket/p"}], ids=str)
def test_what_leaves_the_machine_needs_a_key(tmp_path: Path, shared: dict[str, str]) -> None:
    """Redis or S3 without one is refused, and says how to make one."""
    settings = StoreSettings(**{"store": "file:/x", "state_dir": str(tmp_path), **shared})

    with pytest.raises(VaultError, match="token_hex"):
        master_of(settings, {})

    assert master_of(settings, {"TIDEGATE_MASTER_KEY": f"{NEW},{OLD}"}).current == "2"


@pytest.mark.parametrize("command", ["/no/such/program", "false", "echo no key", "echo '"])
def test_a_command_that_prints_no_key_is_refused(command: str) -> None:
    """Nothing is sealed with what was not meant as a key."""
    with pytest.raises(VaultError, match="key_command"):
        master_of(StoreSettings("file:/x", "/x", key_command=command), {})


def test_a_folder_alone_has_a_key_made_for_it(tmp_path: Path) -> None:
    """Once, for this user alone."""
    settings = StoreSettings("file:/x", str(tmp_path / "state"))

    assert master_of(settings, {}) == master_of(settings, {})
    assert (tmp_path / "state" / "master.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("address", ["file:relative", "s3://", "s3://b?colour=red", "http://x", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """With what an address looks like, or what is not known of it."""
    with pytest.raises(SettingsError, match="store"):
        cold_of(address)


async def test_a_replaced_master_key_opens_what_the_old_one_sealed(tmp_path: Path) -> None:
    """After which the old one is no longer needed."""
    keys = {"1": b"\x11" * 32, "2": b"\x22" * 32}
    cold = FolderTier(tmp_path)

    def tenants(current: str, *known: str) -> Tenants:
        return Tenants(Master({each: keys[each] for each in known}, current), cold, now=lambda: 0.0)

    made = await tenants("1", "1").secrets("ada")

    assert await tenants("2", "1", "2").rewrap() == 1
    assert (await tenants("2", "2").secrets("ada")).naming == made.naming


async def test_what_redis_has_forgotten_goes_to_the_cold_tier_early(tmp_path: Path) -> None:
    """An empty Redis is noticed, and what memory still has of its chunks is written where it lasts."""
    redis, cold = MemoryTier(1 << 20, lambda: 0.0), FolderTier(tmp_path)
    shelf = Shelf(MemoryTier(1 << 20, lambda: 0.0), redis, cold, lambda: 0.0)
    tenants = Tenants(Master({"1": b"\x11" * 32}, "1"), cold, now=lambda: 0.0)
    moves = Moves(sessions_of(shelf, Ledger(cold, tenants), lambda: 0.0), StoreSettings("file:/x", "/x"))
    await moves.keep()
    await shelf.save("chunks/t/a", b"stored")
    await moves.keep()
    assert await cold.get("chunks/t/a") is None

    for entry in [each async for each in redis.entries("")]:
        await redis.delete(entry.key)
    await moves.keep()

    assert await cold.get("chunks/t/a") == b"stored"
    assert shelf.counts["forgotten.redis"] == 1


async def test_a_chunk_that_memory_alone_has_is_not_dropped(tmp_path: Path) -> None:
    """When it has to make room, and the cold tier takes it by now, it goes there."""
    cold = FolderTier(tmp_path / "cold")
    cold.folder.touch()
    shelf = Shelf(MemoryTier(10, lambda: 0.0), None, cold, lambda: 0.0)
    with pytest.raises(TierError, match="no tier"):
        await shelf.save("chunks/t/a", b"8 bytes.")
    cold.folder.unlink()

    await shelf.save("chunks/t/b", b"8 others")

    assert [await cold.get(f"chunks/t/{name}") for name in "ab"] == [b"8 bytes.", b"8 others"]
    assert shelf.memory.dropped == 1


async def test_what_tiers_hold_is_told_and_known(tmp_path: Path) -> None:
    """As listed, and as put since; what was listed is found without asking."""
    cold = FolderTier(tmp_path)
    await cold.put("chunks/t/a", b"123")
    shelf = Shelf(MemoryTier(1 << 20, lambda: 0.0), None, cold, lambda: 0.0)

    await shelf.survey()
    await shelf.save("chunks/t/b", b"45")
    await cold.delete("chunks/t/a")

    assert shelf.held == {"cold": Held(2, 5)}
    assert await shelf.find(["chunks/t/a"]) == [("cold", 3)]


async def test_chunks_of_nobody_are_swept_after_a_while(tmp_path: Path) -> None:
    """Young ones stay: the note that names them may still come; a clock that jumped sweeps nothing."""
    wall = [1e12]
    cold = FolderTier(tmp_path)
    tenants = Tenants(Master({"1": b"\x11" * 32}, "1"), cold, now=lambda: 0.0)
    shelf = Shelf(MemoryTier(1 << 20, lambda: 0.0), None, cold, lambda: 0.0, Counter())
    moves = Moves(sessions_of(shelf, Ledger(cold, tenants), lambda: wall[0]), StoreSettings("file:/x", "/x"))
    await cold.put("chunks/nobody/a", b"x")

    assert (await moves.collect(grace_s=2e12))["chunks"] == 0
    wall[0] += 10 * JUMP_S
    assert (await moves.collect())["skipped"] == 1
    assert await cold.size("chunks/nobody/a") == 1
    assert (await moves.collect())["chunks"] == 1
    assert await cold.size("chunks/nobody/a") is None
