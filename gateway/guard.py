"""Whether a request was meant for this server: its Host and Origin, so that no web page reaches a loopback port.

A page's own name can be made to resolve to 127.0.0.1 (DNS rebinding); the Host header then still says that name, and
the Origin header says whose page sends it. Refuses to know paths and callers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from gateway.cors import NO_PAGE, Cors
from gateway.refusal import Refusal
from gateway.units import Address

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SETTING = "add it to allowed_hosts under [server] in gateway.toml if it is yours"


class Guard:
    """The host names that a port answers to."""

    def __init__(self, listen: Address, allowed_hosts: Iterable[str], *, cors: Cors = NO_PAGE) -> None:
        self._cors = cors
        self._hosts = frozenset(map(_host_name, (*_LOOPBACK, listen.host, *allowed_hosts)))
        # Behind a wildcard the machine's own addresses are not known here; an address cannot be rebound like a name.
        self._takes_addresses = not listen.is_loopback

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuse (403) a request for another host, or from a page of another host."""
        host = headers.get("host")
        if host is not None and not self._is_ours(_host_name(host)):
            raise Refusal(
                403, "host_not_allowed", f"this server does not answer to the host {host[:253]!r}; {_SETTING}"
            )
        origin = headers.get("origin")
        if origin is not None and _origin_host(origin) not in self._hosts and not self._cors.allows(headers):
            raise Refusal(403, "origin_not_allowed", f"pages of {origin[:253]!r} may not call this server; {_SETTING}")

    def _is_ours(self, host: str) -> bool:
        return host in self._hosts or (self._takes_addresses and _is_address(host))


def _host_name(host: str) -> str:
    """Return a Host header's name in lower case, without port, brackets and final dot."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    if host.count(":") == 1:
        host = host.partition(":")[0]
    return host.removesuffix(".")


def _origin_host(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
