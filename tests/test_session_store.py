"""The session store as a process: what is saved is there, for its tenant alone, after any end of the store."""

from __future__ import annotations

import asyncio
import os
import signal
from array import array
from pathlib import Path

import pytest

from sessioncache.client import Prefix, StoreClient, StoreError
from tests.stores import LAYERS, client_of, folder_in, prefix, restored, saved, store_running


async def test_what_was_saved_is_restored(tmp_path: Path) -> None:
    """All layers of all whole chunks, from memory."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(3))

            assert await restored(client, prefix(3)) == ["memory"] * 3
            assert await restored(client, prefix(5)) == ["memory"] * 3


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_what_was_saved_survives_the_store(tmp_path: Path, end: signal.Signals) -> None:
    """However it ends."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            name = await saved(client, prefix(2))
        store.ended(end)

    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            assert await restored(client, prefix(2)) == ["cold"] * 2
            assert await restored(client, prefix(2)) == ["memory"] * 2
            assert [each["session"] for each in await client.sessions()] == [name]


async def test_no_tenant_finds_anothers_chunks(tmp_path: Path) -> None:
    """But for those of a prompt that the operator declared common."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(3, common_tokens=512))

            assert await restored(client, prefix(3, tenant="bob")) == []
            assert await restored(client, prefix(3, tenant="bob", common_tokens=512)) == ["memory"] * 2


async def test_another_model_or_codec_finds_nothing(tmp_path: Path) -> None:
    """Weights or a form that differ are a miss, never a mixture."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, of := prefix(1))

            assert await restored(client, Prefix(of.tenant, "other", of.codec, of.tokens)) == []
            assert await restored(client, Prefix(of.tenant, of.model, "exact-2", of.tokens)) == []


async def test_later_layers_are_fetched_alone(tmp_path: Path) -> None:
    """From the first that is asked for."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(1))
            found = await client.lookup(prefix(1))

            assert await client.fetch(found.handle, 0, first_layer=2) == LAYERS[2:]


async def test_nothing_readable_lies_in_the_folder(tmp_path: Path) -> None:
    """No payload, no summary, no name that a client gave."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(1), session="ada's session")

    stored = b"".join(path.read_bytes() for path in (tmp_path / "cold").rglob("*") if path.is_file())
    assert not [each for each in (b"layer", b"ada's session", b"turns") if each in stored]


async def test_an_erased_session_is_gone_and_stays_so(tmp_path: Path) -> None:
    """From every tier, but for what another session has too; late notes are refused and leave nothing."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            longer = Prefix("ada", "model", "exact-1", prefix(1).tokens[:256] + prefix(2, first=9000).tokens)
            await saved(client, prefix(1), session="short")
            name = await saved(client, longer, session="long")

            assert await client.erase(name) == 2

            assert await restored(client, longer) == ["memory"]
            with pytest.raises(StoreError, match="was erased"):
                await saved(client, longer, session="long")
            with pytest.raises(StoreError, match="no session"):
                await client.show(name)
            assert len([path for path in (tmp_path / "cold" / "chunks").rglob("*") if path.is_file()]) == 1


async def test_an_edited_session_is_erased_with_what_it_was_before(tmp_path: Path) -> None:
    """An earlier form of a conversation is as private as its last."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(2), session="s")
            name = await saved(client, prefix(2, first=9000), session="s")

            assert await client.erase(name) == 4


async def test_an_erased_tenant_is_gone(tmp_path: Path) -> None:
    """With its secret, so that no copy can be read; handles on it end; it may begin anew."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(2))
            await saved(client, prefix(2, tenant="bob"))
            open_one = await client.lookup(prefix(2))

            await client.erase_tenant("ada")

            with pytest.raises(StoreError, match="not open"):
                await client.fetch(open_one.handle, 0)
            assert await restored(client, prefix(2)) == []
            assert await restored(client, prefix(2, tenant="bob")) == ["memory"] * 2
            await saved(client, prefix(2))
            assert await restored(client, prefix(2)) == ["memory"] * 2


async def test_a_corrupt_chunk_is_a_miss_and_counted(tmp_path: Path) -> None:
    """Never an answer; and it may be saved anew."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(1))
        store.ended()
    for path in (tmp_path / "cold" / "chunks").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"!")

    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            found = await client.lookup(prefix(1))
            with pytest.raises(StoreError) as refused:
                await client.fetch(found.handle, 0)

            assert refused.value.kind == "miss"
            assert (await client.stats())["counts"]["corrupt.cold"] == 1
            assert await client.missing(found.handle) == [0]
            await client.save(found.handle, 0, LAYERS)
            assert await restored(client, prefix(1)) == ["memory"]


async def test_a_wrong_master_key_reads_nothing_and_deletes_nothing(tmp_path: Path) -> None:
    """Calls fail as broken; the right key finds all that was there."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, prefix(1))
        store.ended()
    (tmp_path / "other").write_text("1:" + "22" * 32)

    with store_running(tmp_path, key_file=str(tmp_path / "other"), ttl_s=0.001) as store:
        async with client_of(store) as client:
            with pytest.raises(StoreError) as refused:
                await client.lookup(prefix(1))
            assert (await client.gc())["chunks"] == 0

    assert refused.value.kind == "broken"
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            assert await restored(client, prefix(1)) == ["cold"]


async def test_a_master_key_is_replaced_while_sessions_stay(tmp_path: Path) -> None:
    """The new one first in what the key command prints; once the store has started with both, the old one may go."""
    keys, wrapped = tmp_path / "keys", tmp_path / "cold" / "keys"
    old, new = (f"{number}:{str(number) * 64}\n" for number in (1, 2))
    for given in (old, new + old, new):
        keys.write_text(given)
        with store_running(tmp_path, key_command=f"cat {keys}") as store:
            async with client_of(store) as client, asyncio.timeout(20):
                if given == old:
                    await saved(client, prefix(1))
                assert len(await restored(client, prefix(1))) == 1
                current = f'"key_id\\":\\"{given[0]}\\"'
                while not all(current in path.read_text() for path in wrapped.iterdir()):
                    await client.stats()


async def test_two_stores_race_on_one_session(tmp_path: Path) -> None:
    """Every note of both is taken; the session is what one of them said last."""
    with store_running(tmp_path) as one, store_running(tmp_path) as other:
        async with client_of(one) as left, client_of(other) as right:
            both = [(left, prefix(2)), (right, prefix(3))] * 5
            names = await asyncio.gather(*(saved(client, of) for client, of in both))

            (listed,) = await left.sessions()
            assert {listed["session"]} == set(names)
            assert listed["stored_tokens"] in {512, 768}
            assert len(await restored(right, prefix(3))) == 3


async def test_asking_wrongly_is_refused(tmp_path: Path) -> None:
    """And costs nobody the connection."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            for verb, asked in [("fly", {}), ("fetch", {"handle": 9, "chunk": 0, "first_layer": 0}), ("lookup", {})]:
                with pytest.raises(StoreError) as refused:
                    await client._ask(verb, asked)
                assert refused.value.kind == "refused"
            found = await client.lookup(prefix(1))
            with pytest.raises(StoreError, match="no chunk"):
                await client.save(found.handle, 1, LAYERS)


async def test_more_calls_at_once_than_are_answered_at_once(tmp_path: Path) -> None:
    """Wait their turn; large answers come whole while small ones pass."""
    large = [os.urandom(3 << 20), b"", os.urandom(5)]
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            found = await client.lookup(prefix(1))
            await client.save(found.handle, 0, large)

            answers = await asyncio.gather(
                *(client.fetch(found.handle, 0) for _ in range(20)), *(client.missing(found.handle) for _ in range(100))
            )

            assert answers == [large] * 20 + [[]] * 100


async def test_what_is_no_frame_ends_the_connection(tmp_path: Path) -> None:
    """A length beyond the bound is not waited for."""
    with store_running(tmp_path) as store:
        reader, writer = await asyncio.open_unix_connection(store.socket)
        writer.write(b"\xff" * 8)

        assert await reader.read() == b""
        writer.close()


async def test_a_store_that_is_gone_is_unreachable(tmp_path: Path) -> None:
    """For what is under way, for what comes after, and for who connects."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await client.lookup(prefix(1))
            store.ended(signal.SIGKILL)

            with pytest.raises(StoreError) as lost:
                await client.stats()
            assert lost.value.kind == "unreachable"
        with pytest.raises(StoreError):
            await StoreClient.connect(store.socket)


async def test_a_store_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """When its standard input ends."""
    with store_running(tmp_path) as store:
        assert store.waited() == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stor": "x"}, "stor"),
        ({"store": "ftp://x"}, "write"),
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"key_file": os.devnull}, "there is no key in it"),
    ],
)
def test_settings_that_cannot_be_end_the_store(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    """With one line that says which and what to do."""
    with store_running(tmp_path, **settings) as store:
        assert store.waited() == 78

    assert said in store.log.read_text()


async def test_tokens_travel_as_they_are(tmp_path: Path) -> None:
    """One token that differs in the first chunk is another prefix."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            await saved(client, of := prefix(2))
            changed = array("I", of.tokens)
            changed[300] += 1

            assert await restored(client, Prefix("ada", of.model, of.codec, changed)) == ["memory"]


async def test_an_exported_session_is_taken_in_elsewhere(tmp_path: Path) -> None:
    """By a store with the same master key; its client's next turn is restored there."""
    with store_running(folder_in(tmp_path, "a")) as one, store_running(folder_in(tmp_path, "b")) as other:
        async with client_of(one) as left, client_of(other) as right:
            name = await saved(left, prefix(3))

            assert await right.import_(await left.export(name)) == name

            assert await restored(right, prefix(3)) == ["memory"] * 3
            assert (await right.show(name))["summary"] == {"turns": 1}


async def test_a_file_that_was_altered_is_refused(tmp_path: Path) -> None:
    """Wherever; and nothing of it becomes a session."""
    with store_running(tmp_path) as store:
        async with client_of(store) as client:
            file = await client.export(await saved(client, prefix(2)))
            await client.erase_tenant("ada")
            flips = [bytes([*file[:at], file[at] ^ 1, *file[at + 1 :]]) for at in range(0, len(file), len(file) // 50)]

            for hostile in [b"", file[:-1], file[: len(file) // 2], file + b"\0", *flips]:
                with pytest.raises(StoreError) as refused:
                    await client.import_(hostile)
                assert refused.value.kind in {"refused", "miss"}

            assert await client.sessions() == []
