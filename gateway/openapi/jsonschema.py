"""The few words of JSON Schema in which request and answer bodies are described.

Refuses to know what is described.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Schema = Mapping[str, object]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NOTHING: Schema = {"type": "null"}
ANYTHING: Schema = {}
ANY_OBJECT: Schema = {"type": "object"}


def text(*allowed: str) -> Schema:
    """Describe one of these texts, or one that is not empty."""
    return {"type": "string", "enum": list(allowed)} if allowed else {"type": "string", "minLength": 1}


def integer(low: int, high: int) -> Schema:
    """Describe an integer of a range."""
    return {"type": "integer", "minimum": low, "maximum": high}


def number(low: float, high: float) -> Schema:
    """Describe a number of a range."""
    return {"type": "number", "minimum": low, "maximum": high}


def array(of: Schema, *, fewest: int = 0, most: int | None = None) -> Schema:
    """Describe an array."""
    bounds = {"minItems": fewest} if fewest else {}
    return {"type": "array", "items": of, **bounds, **({"maxItems": most} if most is not None else {})}


def shape(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Describe an object; what is optional may be null, and other members may be there."""
    optional = {name: maybe(schema) for name, schema in (optional or {}).items()}
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def maybe(schema: Schema) -> Schema:
    """Describe the same, or null."""
    return either(schema, NOTHING) if schema and schema != NOTHING else schema


def either(*schemas: Schema) -> Schema:
    """Describe what fits one of these."""
    return {"anyOf": list(schemas)}


def constant(value: object) -> Schema:
    """Describe one value."""
    return {"const": value}


def said(schema: Schema, description: str) -> Schema:
    """Add what people should know."""
    return {**schema, "description": description}


def all_of(names: str, schema: Schema) -> Mapping[str, Schema]:
    """Describe fields, named in one text, that are all of the same kind."""
    return dict.fromkeys(names.split(), schema)


def one_of_kind(kinds: Sequence[str], member: str = "text") -> Schema:
    """Describe a part of content: its type, and its text."""
    return either(*(shape({"type": constant(kind), member: TEXT}) for kind in kinds))
