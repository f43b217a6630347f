"""Rebuild our dataclasses from the JSON that orjson makes of them, guided by their own annotations.

Refuses to know which dataclasses there are, and does not check plain values: both ends are the same program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
Rebuild = Callable[[Any], Any]


def rebuild(kind: type[Kind], wire: object) -> Kind:
    """Make a `kind` of its JSON form; ValueError, TypeError or KeyError when the form is not its own."""
    shape: Any = kind
    return cast("Kind", _rebuilder(shape)(wire))


@cache
def _rebuilder(kind: Any) -> Rebuild:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass(cast("type", kind))
    if origin is tuple:
        return _tuple(arguments)
    if origin in {Union, UnionType}:
        return _union(arguments)
    return _as_it_is


def _as_it_is(wire: Any) -> Any:
    return wire


def _dataclass(kind: type) -> Rebuild:
    fields = {name: _rebuilder(hint) for name, hint in get_type_hints(kind).items()}
    return lambda wire: kind(**{name: fields[name](value) for name, value in wire.items()})


def _tuple(kinds: tuple[Any, ...]) -> Rebuild:
    if kinds[-1] is Ellipsis:
        each = _rebuilder(kinds[0])
        return tuple if each is _as_it_is else lambda wire: tuple(map(each, wire))
    members = [_rebuilder(kind) for kind in kinds]
    return lambda wire: tuple(member(value) for member, value in zip(members, wire, strict=True))


def _union(kinds: tuple[Any, ...]) -> Rebuild:
    """At most one member is not a plain value, and only that one is written as an array or object."""
    structured = [each for kind in kinds if (each := _rebuilder(kind)) is not _as_it_is]
    if not structured:
        return _as_it_is
    (each,) = structured
    return lambda wire: each(wire) if isinstance(wire, list | dict) else wire
