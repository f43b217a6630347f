"""The settings as a JSON schema for editors and as a reference table for people: `python -m gateway.schema [--table]`.

Refuses to know any setting by name.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from gateway.fields import Field, Items, Kind, Pattern, Range, Secret, Written, fields_of, tables_of
from gateway.settings import Config

_VARIABLE = r"\$\{"
_JSON_TYPES: dict[object, str] = {bool: "boolean", int: "integer", float: "number"}


def schema() -> dict[str, Any]:
    """Return the schema of the whole file; it accepts all that the gateway accepts, and ranges of texts beyond."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Tidegate", **_table(Config)}


def _table(table: type) -> dict[str, Any]:
    fields = fields_of(table)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [each.key for each in fields if each.is_required],
        "properties": {each.key: {"description": each.doc, **_default(each), **_value(each.kind)} for each in fields},
    }


def _default(each: Field) -> dict[str, Any]:
    return {} if each.is_required or each.kind.table else {"default": toml_value(each.kind, each.default)}


def _value(kind: Kind) -> dict[str, Any]:
    if kind.table:
        return _table(kind.table)
    if kind.item:
        items = kind.marker(Items)
        return {"type": "array", "items": _value(kind.item), "minItems": items.fewest if items else 0}
    if written := kind.marker(Written):
        return _text(written.regex)
    if kind.choices:
        return _choice(kind.choices)
    if kind.bare is str:
        return _string(kind)
    limits = kind.marker(Range)
    bounds = {"minimum": limits.low, "maximum": limits.high} if limits else {}
    return {"type": _JSON_TYPES[kind.bare], **bounds}


def _string(kind: Kind) -> dict[str, Any]:
    pattern = kind.marker(Pattern)
    if pattern is None:
        return {"type": "string"}
    return _text(f"{pattern.regex}|file:.+" if kind.marker(Secret) else pattern.regex)


def _text(regex: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^({regex})$|{_VARIABLE}"}


def _choice(choices: tuple[object, ...]) -> dict[str, Any]:
    listed = {"enum": list(choices)}
    return {"anyOf": [listed, {"type": "string", "pattern": _VARIABLE}]} if isinstance(choices[0], str) else listed


def toml_value(kind: Kind, value: object) -> Any:
    """Return the value as the file writes it: 600.0 seconds are "10m"."""
    written = kind.marker(Written)
    if isinstance(value, tuple):
        return [toml_value(kind.item, each) for each in value] if kind.item else []
    return written.show(value) if written else value


def table() -> str:
    """Return every setting with its default, as Markdown."""
    parts = [f"### `{heading}`\n\n{inner.__doc__}\n\n{_rows(inner)}" for heading, inner in tables_of(Config)]
    return "\n\n".join(parts)


def _rows(inner: type) -> str:
    rows = [_row(each) for each in fields_of(inner) if not (each.kind.item or each.kind).table]
    return "\n".join(("| key | default | what it does | allowed |", "|---|---|---|---|", *rows))


def _row(each: Field) -> str:
    default = "required" if each.is_required else f"`{json.dumps(toml_value(each.kind, each.default))}`"
    cells = (f"`{each.key}`", default, each.doc, each.kind.limits or each.kind.allowed())
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.write((table() if "--table" in sys.argv[1:] else json.dumps(schema(), indent=2)) + "\n")
