"""Tenants' secrets: they open what is theirs, and nothing else opens anything."""

from __future__ import annotations

import os

import pytest

from sessioncache.problems import ChunkError, VaultError
from sessioncache.vault import Master, Secrets

OLD, NEW = os.urandom(32), os.urandom(32)
MASTER = Master({"old": OLD}, current="old")


@pytest.fixture
def secrets() -> Secrets:
    """Open the secret of a fresh tenant."""
    return MASTER.secrets("a", MASTER.create("a"))


def test_what_is_sealed_opens_again(secrets: Secrets) -> None:
    """With the same bytes bound to it."""
    assert secrets.open(secrets.seal(b"kv", b"header"), b"header") == b"kv"


def test_equal_bytes_are_sealed_differently_each_time(secrets: Secrets) -> None:
    """Else a nonce would have been used twice."""
    assert secrets.seal(b"kv", b"") != secrets.seal(b"kv", b"")


@pytest.mark.parametrize("at", [0, 11, 12, 13, 14, -1])
def test_one_altered_bit_is_noticed(secrets: Secrets, at: int) -> None:
    """In the nonce, the text or the tag."""
    sealed = bytearray(secrets.seal(b"kv", b"header"))
    sealed[at] ^= 1

    with pytest.raises(ChunkError):
        secrets.open(bytes(sealed), b"header")


@pytest.mark.parametrize("length", [0, 12, 27])
def test_too_few_bytes_are_an_error(secrets: Secrets, length: int) -> None:
    """Not a crash in the cipher."""
    with pytest.raises(ChunkError):
        secrets.open(secrets.seal(b"", b"")[:length], b"")


def test_other_bound_bytes_or_another_tenant_do_not_open_it(secrets: Secrets) -> None:
    """A frame belongs to its header, and to its tenant."""
    sealed, other = secrets.seal(b"kv", b"header"), MASTER.secrets("a", MASTER.create("a"))

    for opener, bound in ((secrets, b"another"), (other, b"header")):
        with pytest.raises(ChunkError):
            opener.open(sealed, bound)


def test_a_wrapped_secret_belongs_to_one_tenant() -> None:
    """Copied to another's place it does not open."""
    with pytest.raises(VaultError):
        MASTER.secrets("b", MASTER.create("a"))


def test_a_master_key_can_be_replaced_without_losing_anything() -> None:
    """Rewrapped, the secret is the same, and the old master key is not needed any more."""
    wrapped = MASTER.create("a")
    sealed = MASTER.secrets("a", wrapped).seal(b"kv", b"")

    rewrapped = Master({"old": OLD, "new": NEW}, current="new").rewrap("a", wrapped)

    assert Master({"new": NEW}, current="new").secrets("a", rewrapped).open(sealed, b"") == b"kv"


@pytest.mark.parametrize(
    ("master", "says"), [(Master({"new": NEW}, "new"), "'old'"), (Master({"old": NEW}, "old"), "does not open")]
)
def test_a_wrong_master_key_says_which_one_is_needed(master: Master, says: str) -> None:
    """Whether its id is unknown or its bytes are others."""
    with pytest.raises(VaultError, match=says):
        master.secrets("a", MASTER.create("a"))


@pytest.mark.parametrize("keys", [{"old": b"short"}, {"other": OLD}])
def test_keys_that_are_none_are_refused_at_once(keys: dict[str, bytes]) -> None:
    """A key of another length, or none with the current id."""
    with pytest.raises(VaultError):
        Master(keys, current="old")


@pytest.mark.parametrize("wrapped", [b"", b"[]", b"{}", b'{"key_id":1,"nonce":"","sealed":""}', b"\xff"])
def test_a_damaged_wrapped_secret_is_an_error(wrapped: bytes) -> None:
    """That says so."""
    with pytest.raises(VaultError, match="not readable"):
        MASTER.secrets("a", wrapped)


def test_no_secret_is_shown(secrets: Secrets) -> None:
    """Neither by a log of the objects nor by a traceback."""
    assert OLD.hex() not in repr(MASTER)
    assert repr(secrets.naming) not in repr(secrets)
