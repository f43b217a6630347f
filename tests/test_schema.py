"""The manual, the schema and the reference table are what the code does."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from gateway.config import DEFAULT_NAME, Config, load
from gateway.fields import Field, fields_of, tables_of
from gateway.problems import key_lines
from gateway.schema import schema, table, toml_value

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / DEFAULT_NAME
MODEL = '[[models]]\nname = "m"\n[[models.releases]]\nsource = "echo"\n'


def uncommented() -> str:
    """Return the shipped file with its example tenant made real."""
    before, heading, tenant = SHIPPED.read_text().partition("# [[tenants]]\n")
    example, gap, after = tenant.partition("\n\n\n")
    return before + heading[2:] + re.sub(r"^# ?", "", example, flags=re.MULTILINE) + gap + after


def manual() -> list[tuple[str, Field, object, str]]:
    """Return heading, field, value and comment of every key that the shipped file should have."""
    text = uncommented()
    lines, raw = text.splitlines(), tomllib.loads(text)
    rows = []
    for heading, inner in tables_of(Config):
        names = heading.strip("[]").split(".")
        values, path = raw, ()
        for name in names:
            values, path = values[name], (*path, name)
            values, path = (values[0], (*path, 0)) if isinstance(values, list) else (values, path)
        for each in fields_of(inner):
            if not (each.kind.item or each.kind).table:
                line = key_lines(text)[*path, each.key]
                comment = "\n".join(lines[: line - 1]).rpartition("\n\n")[2]
                rows.append((heading, each, values[each.key], comment))
    return rows


def test_the_shipped_file_loads_and_holds_the_defaults() -> None:
    """Starting with the shipped file is the same as leaving out every key that has a default."""
    config = load(SHIPPED, {})

    assert config == Config(models=config.models)
    assert [release.name for model in config.models for release in model.releases] == ["stable"]


def test_the_shipped_file_shows_every_key_with_its_true_default() -> None:
    """The manual names each key of each table; where there is a default, it is the one of the code."""
    for heading, each, value, comment in manual():
        where = f"{heading} {each.key}"
        assert "#" in comment, where
        if each.is_required:
            assert "No default" in comment, where
        elif "No default" not in comment:  # of two keys that stand in for each other, one is given
            assert value == toml_value(each.kind, each.default), where


def test_the_shipped_file_states_every_range_and_choice() -> None:
    """What the manual says is allowed is what the code allows."""
    for heading, each, _, comment in manual():
        words = comment.replace("\n#", "")
        expected = [each.kind.limits] if each.kind.limits else [str(choice) for choice in each.kind.choices]
        for part in expected:
            assert part in words, f"{heading} {each.key}"


def test_the_example_tenant_is_valid(tmp_path: Path) -> None:
    """The commented part of the shipped file works once its # are gone."""
    file = tmp_path / DEFAULT_NAME
    file.write_text(uncommented())

    assert [tenant.name for tenant in load(file, {}).tenants] == ["team-a"]


def test_the_committed_schema_is_the_generated_one() -> None:
    """`python -m gateway.schema > docs/gateway.schema.json` has been run since the settings last changed."""
    assert json.loads((ROOT / "docs/gateway.schema.json").read_text()) == schema()


def test_the_reference_table_is_the_generated_one() -> None:
    """docs/configuration.md holds what `python -m gateway.schema --table` prints."""
    assert table() in (ROOT / "docs/configuration.md").read_text()


def test_the_schema_accepts_the_shipped_file() -> None:
    """An editor with the schema marks nothing in the shipped file, its example included."""
    jsonschema.validate(tomllib.loads(uncommented()), schema(), cls=jsonschema.Draft7Validator)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nlisen = 'x'\n", "'lisen' was unexpected"),
        ("[batching]\nmax_batch = 500\n", "500 is greater than the maximum of 256"),
        ("[batching]\nblock_tokens = 12\n", "12 is not one of"),
        ("[server]\nrequest_timeout = '30'\n", "'30' does not match"),
        ("[log]\nlevel = 'loud'\n", "'loud' does not match"),
        ("[[tenants]]\nname = 't'\nkeys = ['raw']\n", "'raw' does not match"),
        (MODEL.replace('name = "m"', ""), "'name' is a required property"),
    ],
)
def test_the_schema_rejects_a_mistake(text: str, problem: str) -> None:
    """An editor with the schema marks an unknown key, a wrong value and a missing key."""
    mistaken = tomllib.loads(text + MODEL)

    with pytest.raises(jsonschema.ValidationError, match=problem):
        jsonschema.validate(mistaken, schema(), cls=jsonschema.Draft7Validator)


@pytest.mark.parametrize("value", ['request_timeout = "${T}"', 'admin_token = "file:/run/token"', 'listen = "${L}"'])
def test_the_schema_accepts_variables_and_files(value: str) -> None:
    """What is filled in at the start cannot be a mistake in an editor."""
    jsonschema.validate(tomllib.loads(f"{MODEL}\n[server]\n{value}"), schema())


def test_every_setting_is_documented() -> None:
    """No key comes without a sentence about it."""
    assert [each.key for _, inner in tables_of(Config) for each in fields_of(inner) if not each.doc] == []
