"""Durations, sizes and addresses, as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.units import Address, duration_text, parse_address, parse_duration, parse_size, size_text


@given(st.integers(0, 10**15 - 1), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_every_whole_duration_is_read_exactly(number: int, unit: str) -> None:
    """The number counts the unit, whatever its size."""
    milliseconds = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}[unit]

    assert parse_duration(f"{number}{unit}") == number * milliseconds / 1000


@given(st.integers(0, 10**11))
def test_a_written_duration_is_read_back(milliseconds: int) -> None:
    """What the documentation shows means what the code holds."""
    assert parse_duration(duration_text(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(0, 1 << 48))
def test_a_written_size_is_read_back(size: int) -> None:
    """What the documentation shows means what the code holds."""
    assert parse_size(size_text(size)) == parse_size(f"{size}B") == size


@given(st.text(max_size=12))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    """No text makes the readers of durations, sizes and addresses fail in another way."""
    for parse in (parse_duration, parse_size, parse_address):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize("text", ["", "30", "-1s", "1h30m", "30 min", "s", "1e3s", "٣s", "1_000s"])
def test_other_texts_are_no_durations(text: str) -> None:
    """Nothing is guessed: a unit is needed and only one form is read."""
    with pytest.raises(ValueError, match="unit"):
        parse_duration(text)


def test_a_size_is_a_whole_number_of_bytes() -> None:
    """A size is never rounded."""
    assert parse_size("1.5KiB") == 1536
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("0.1KiB")


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_address_is_read_back(host: object, port: int) -> None:
    """Every IP address and port can be listened on and is shown as it is written."""
    address = Address(str(host), port)

    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_only_loopback_is_out_of_reach(host: str, *, is_loopback: bool) -> None:
    """A name whose address is unknown counts as reachable."""
    assert Address(host, 1).is_loopback is is_loopback
