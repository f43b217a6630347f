"""Who is calling: API keys from the request's headers to a `Tenant`.

Refuses to know what a tenant may use up. Keys are looked up by their SHA-256 digest, so that comparing takes no
longer for a nearly right key, and no key is kept in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.refusal import Refusal
from gateway.settings import Config, Model

_SEND = "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A caller and the models it may use, by name or alias; "*" is all."""

    name: str
    models: frozenset[str] = frozenset({"*"})

    def may_call(self, model: Model) -> bool:
        """Whether one of its grants means this model."""
        return not self.models.isdisjoint({"*", model.name, *model.aliases})


ANONYMOUS = Tenant("anonymous")


class Tenants:
    """All tenants by the hashes of their keys; `is_open` serves callers without a valid key as `ANONYMOUS`."""

    def __init__(self, by_hash: Mapping[str, Tenant], *, is_open: bool) -> None:
        self._by_hash, self._is_open = by_hash, is_open

    def identify(self, headers: Mapping[str, str]) -> Tenant:
        """Return the tenant whose key is sent, or refuse (401) with what to set."""
        keys = tuple(_keys(headers))
        for key in keys:
            if tenant := self._by_hash.get(key_hash(key)):
                return tenant
        if self._is_open:
            return ANONYMOUS
        if not keys:
            raise Refusal(401, "missing_api_key", f"an API key is needed; {_SEND}")
        raise Refusal(
            401,
            "invalid_api_key",
            f"no tenant has this API key; {_SEND}, and see that its hash, as `tidegate keys hash` prints it, "
            "stands in keys of a [[tenants]] in gateway.toml",
        )


def open_tenants(config: Config) -> Tenants:
    """Build the tenants of a configuration; without any, everybody is served."""
    by_hash = {key: Tenant(tenant.name, frozenset(tenant.models)) for tenant in config.tenants for key in tenant.keys}
    return Tenants(by_hash, is_open=config.auth.open or not config.tenants)


def key_hash(key: str) -> str:
    """Return the form in which a key stands in gateway.toml."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def has_key(headers: Mapping[str, str], wanted_hash: str) -> bool:
    """Whether a key with this hash is sent."""
    return any(key_hash(key) == wanted_hash for key in _keys(headers))


def _keys(headers: Mapping[str, str]) -> Iterator[str]:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        yield key.strip()
    if key := headers.get("x-api-key", "").strip():
        yield key
