"""How people write durations, sizes and addresses, to and from the numbers that code uses.

Refuses to know which setting a text belongs to.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from fractions import Fraction

_SECONDS = {"d": Fraction(86400), "h": Fraction(3600), "m": Fraction(60), "s": Fraction(1), "ms": Fraction(1, 1000)}
_BYTES = {
    "TiB": Fraction(1 << 40),
    "GiB": Fraction(1 << 30),
    "MiB": Fraction(1 << 20),
    "KiB": Fraction(1 << 10),
    "TB": Fraction(10**12),
    "GB": Fraction(10**9),
    "MB": Fraction(10**6),
    "KB": Fraction(10**3),
    "B": Fraction(1),
}
_AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host as it is bound (no brackets) and a port; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write the address as it is written in the file and in URLs."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it; a name other than localhost counts as reachable."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def from_here(self) -> Address:
        """Where this machine's own programs reach it: every interface is listened on, but none is called so."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - not bound, but replaced
        return Address(host, self.port)

    def overlaps(self, other: Address) -> bool:
        """Whether binding both would fail, or send one's callers to the other."""
        ours, theirs = _bound_hosts(self.host), _bound_hosts(other.host)
        everywhere = {"0.0.0.0", "::"}  # noqa: S104 (compared with, never bound)
        return self.port == other.port != 0 and bool(ours & theirs or (ours | theirs) & everywhere)


def _bound_hosts(host: str) -> set[str]:
    return {"127.0.0.1", "::1"} if host == "localhost" else {host}


def parse_duration(text: str) -> float:
    """Seconds of a text such as "500ms", "30s", "10m", "2h" or "7d"; ValueError says what is wrong with it."""
    return float(_amount(text, _SECONDS, example="30s"))


def parse_size(text: str) -> int:
    """Bytes of a text such as "32MiB", "2GiB" or "500MB"; ValueError says what is wrong with it."""
    size = _amount(text, _BYTES, example="32MiB")
    if size.denominator != 1:
        raise ValueError("that is not a whole number of bytes")
    return int(size)


def _amount(text: str, units: dict[str, Fraction], *, example: str) -> Fraction:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f'write a number and a unit, such as "{example}"')
    number, unit = match.groups()
    if unit not in units:
        problem = "that is not a unit" if unit else "the unit is missing"
        raise ValueError(f'{problem}, write {", ".join(units)}, as in "{example}"')
    return Fraction(number) * units[unit]


def duration_text(seconds: float) -> str:
    """Write seconds in the largest unit that divides them: 600 is "10m"."""
    return _written(Fraction(seconds).limit_denominator(1000), _SECONDS, zero="0s")


def size_text(size: int) -> str:
    """Write bytes in the largest unit that divides them: 1 << 20 is "1MiB"."""
    return _written(Fraction(size), _BYTES, zero="0B")


def _written(amount: Fraction, units: dict[str, Fraction], *, zero: str) -> str:
    for unit, value in units.items():
        if amount and (amount / value).denominator == 1:
            return f"{amount / value}{unit}"
    return zero


def parse_address(text: str) -> Address:
    """Read "host:port" or "[IPv6]:port"; ValueError says what is wrong with it."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError('write "host:port", an IPv6 host in brackets')
    if match["six"]:
        _check_ipv6(match["six"])
    port = int(match["port"])
    if port > 65535:
        raise ValueError("a port is 0 to 65535")
    return Address(match["six"] or match["name"], port)


def _check_ipv6(host: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError("what stands in brackets is not an IPv6 address") from None
