"""Lines are found in any TOML, and no text makes reading a configuration fail in another way."""

from __future__ import annotations

import contextlib
import json
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config, ConfigError, load
from gateway.fields import fields_of, tables_of
from gateway.problems import key_lines


def test_lines_are_found_through_all_of_toml() -> None:
    """Comments, quotes, dots, arrays and texts over several lines do not shift a line."""
    text = textwrap.dedent('''\
        # [a]
        top."x.y" = """
        [a]
        k = \\"""
        """
        list = [ # ]
          "]", [1],
        ]
        [a.'b c']
        k = 'a # b = ['
        [[rows]]
        [[rows.inner]]
        k = { z = "}" }
        [[rows]]
        [[rows.inner]]
        [[rows.inner]]
        k = 1
        ''')

    assert key_lines(text) == {
        ("top", "x.y"): 2,
        ("list",): 6,
        ("a", "b c"): 9,
        ("a", "b c", "k"): 10,
        ("rows", 0): 11,
        ("rows", 0, "inner", 0): 12,
        ("rows", 0, "inner", 0, "k"): 13,
        ("rows", 1): 14,
        ("rows", 1, "inner", 0): 15,
        ("rows", 1, "inner", 1): 16,
        ("rows", 1, "inner", 1, "k"): 17,
    }


WORDS = st.sampled_from(["name", "keys", "releases", "source", "models", "x"])
TOML = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("ab${}: ", max_size=8) | st.just("file:x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
TABLES = [("", Config), *((f"{heading.strip('[]')}.", inner) for heading, inner in tables_of(Config))]
KEYS = st.sampled_from([prefix + each.key for prefix, inner in TABLES for each in fields_of(inner)])


def inline(value: object) -> str:
    """Write a value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + "}"
    return "[" + ", ".join(map(inline, value)) + "]" if isinstance(value, list) else json.dumps(value)


@given(st.dictionaries(KEYS, TOML, max_size=6))
def test_any_toml_is_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    """No file makes the reader fail in another way than with its list of problems."""
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text("".join(f"{key} = {inline(value)}\n" for key, value in values.items()))

    with contextlib.suppress(ConfigError):
        load(file, {})


@given(st.text(max_size=40))
def test_any_text_is_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Nor does a text that is no TOML."""
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))

    with contextlib.suppress(ConfigError):
        load(file, {})
