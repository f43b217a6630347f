"""API keys and the guard against foreign web pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import ANONYMOUS, Tenants, key_hash, open_tenants
from gateway.config import Address, Auth, Config, Model, Release, TenantSettings
from gateway.guard import Guard
from gateway.refusal import Refusal

MODELS = (Model(name="big", aliases=("b",), releases=(Release(source="echo"),)),)
TEAM = TenantSettings(name="team", keys=(key_hash("k1"), key_hash("k2")), models=("b",))


def tenants(*settings: TenantSettings, is_open: bool = False) -> Tenants:
    """Build tenants as a configuration does."""
    return open_tenants(Config(models=MODELS, tenants=settings, auth=Auth(open=is_open)))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer k1"},
        {"authorization": "bearer  k2 "},
        {"x-api-key": "k1"},
        {"authorization": "Bearer unknown", "x-api-key": "k2"},
        {"authorization": "Basic abc", "x-api-key": "k1"},
    ],
)
def test_a_key_is_taken_from_either_header(headers: dict[str, str]) -> None:
    """Both ways to send a key work, whichever SDK is used."""
    assert tenants(TEAM).identify(headers).name == "team"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Bearer DUMMY_KEY"}, "invalid_api_key"),
        ({"x-api-key": ""}, "missing_api_key"),
    ],
)
def test_without_a_valid_key_the_401_says_what_to_set(headers: dict[str, str], code: str) -> None:
    """A missing or wrong key is refused with the headers to send, and never repeated in the message."""
    with pytest.raises(Refusal, match="Authorization: Bearer KEY") as caught:
        tenants(TEAM).identify(headers)

    assert (caught.value.status, caught.value.code) == (401, code)
    assert caught.value.headers["www-authenticate"] == "Bearer"
    assert "DUMMY_KEY" not in caught.value.message


@given(st.text(max_size=40))
def test_no_other_key_opens_the_door(key: str) -> None:
    """Only the keys whose hashes are configured are accepted."""
    with pytest.raises(Refusal):
        tenants(TEAM).identify({"x-api-key": f"k1{key}x"})


def test_everybody_is_served_without_tenants_or_when_open() -> None:
    """Without tenants, or with open = true, any key or none is fine, and a tenant's key still means the tenant."""
    assert tenants().identify({"authorization": "Bearer anything"}) == ANONYMOUS
    assert tenants(TEAM, is_open=True).identify({}) == ANONYMOUS
    assert tenants(TEAM, is_open=True).identify({"x-api-key": "k1"}).name == "team"


def test_a_grant_by_alias_is_a_grant_of_the_model() -> None:
    """A tenant may call a model under any of its names once it may under one."""
    team = tenants(TEAM).identify({"x-api-key": "k1"})

    assert team.may_call(MODELS[0])
    assert not team.may_call(Model(name="other", releases=(Release(source="echo"),)))


@pytest.mark.parametrize(
    ("listen", "host", "is_allowed"),
    [
        ("127.0.0.1", "localhost:8000", True),
        ("127.0.0.1", "Chat.Example.org", True),
        ("127.0.0.1", "chat.example.org.evil.example", False),
        ("127.0.0.1", "192.0.2.1", False),
        ("0.0.0.0", "192.0.2.1:8000", True),
        ("0.0.0.0", "[2001:db8::1]:8000", True),
        ("0.0.0.0", "evil.example", False),
        ("127.0.0.1", "", False),
    ],
)
def test_only_known_hosts_are_answered(listen: str, host: str, *, is_allowed: bool) -> None:
    """Names must be known; addresses are fine where the port is open to other machines, as they cannot be rebound."""
    guard = Guard(Address(listen, 8000), ["chat.example.org"])
    try:
        guard.check({"host": host})
    except Refusal as refusal:
        said = refusal.message
    else:
        said = ""

    assert ("allowed_hosts" not in said) == is_allowed


@pytest.mark.parametrize("origin", ["https://192.0.2.1", "null", "https://evil.example", "http://[", "file://"])
def test_foreign_pages_are_refused(origin: str) -> None:
    """A page's address or name must be known even where addresses are taken as hosts."""
    guard = Guard(Address("0.0.0.0", 8000), [])

    with pytest.raises(Refusal) as caught:
        guard.check({"host": "localhost", "origin": origin})

    assert caught.value.code == "origin_not_allowed"
