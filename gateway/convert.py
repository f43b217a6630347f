"""Parsed TOML into settings: any dataclass whose fields say what they allow, and every mistake found on the way.

Refuses to know any setting by name, and which file the values came from.
"""

from __future__ import annotations

import difflib
import json
import os.path
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from gateway.fields import Field, FilePath, Items, Kind, Pattern, Range, Written, fields_of, tables_of
from gateway.problems import KeyPath, Problem

T = TypeVar("T")
_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Converter:
    """Reads tables into dataclasses. A broken value is noted in `problems` and its default, or nothing, stands in."""

    def __init__(self, root: type, *, folder: Path, environment: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._root, self._folder, self._environment = root, folder, environment

    def table(self, table: type[T], raw: Mapping[str, object], path: KeyPath = ()) -> T:
        """Read one table into its dataclass."""
        fields = {each.key: each for each in fields_of(table)}
        for key in raw:
            if key not in fields:
                self._note((*path, key), f"is not a setting; {self._meant(key, fields)}")
        return table(**{each.name: self._field(each, raw, (*path, each.key)) for each in fields.values()})

    def _field(self, each: Field, raw: Mapping[str, object], path: KeyPath) -> object:
        stand_in = _nothing(each.kind) if each.is_required else each.default
        if each.key in raw:
            return self._value(each.kind, raw[each.key], path, stand_in=stand_in)
        if each.is_required:
            self._note(path, f"is missing; it must be {each.kind.allowed(_heading(path))}")
        return stand_in

    def _value(self, kind: Kind, raw: object, path: KeyPath, *, stand_in: object) -> object:
        try:
            if kind.table:
                return self.table(kind.table, _expect(dict, kind, raw, heading=_heading(path)), path)
            if item := kind.item:
                return self._array(kind, item, _expect(list, kind, raw, heading=_heading(path)), path)
            return self._scalar(kind, raw)
        except ValueError as exc:
            self._note(path, str(exc))
            return stand_in

    def _array(self, kind: Kind, item: Kind, raw: list[object], path: KeyPath) -> tuple[object, ...]:
        items = kind.marker(Items)
        if items and len(raw) < items.fewest:
            raise ValueError(f"has {len(raw)} of at least {items.fewest}; it must be {kind.allowed(_heading(path))}")
        return tuple(self._value(item, each, (*path, i), stand_in=_nothing(item)) for i, each in enumerate(raw))

    def _scalar(self, kind: Kind, raw: object) -> object:
        value = self._text(raw, is_secret=kind.is_secret) if isinstance(raw, str) else raw
        if written := kind.marker(Written):
            value = _read(written, value, kind=kind, raw=raw)
        elif not _fits(kind, value):
            raise _wrong(kind, raw)
        _check_bounds(kind, value, raw=raw)
        return self._resolved(kind.marker(FilePath), value)

    def _resolved(self, marker: FilePath | None, value: object) -> object:
        if marker is None or not isinstance(value, str) or re.fullmatch(marker.unless, value):
            return value
        path = os.path.expanduser(value.removeprefix(marker.prefix))  # noqa: PTH111 (Path raises for an unknown ~name)
        return marker.prefix + os.path.normpath(self._folder / path)

    def _text(self, raw: str, *, is_secret: bool) -> str:
        text = _VARIABLE.sub(self._variable, raw)
        # The file decides what is a path: a variable that holds "file:…" is taken as it is.
        return self._from_file(text, raw=raw) if is_secret and raw.startswith("file:") else text

    def _variable(self, match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name = match[1]
        if not match[2] or not _VARIABLE_NAME.fullmatch(name):
            raise ValueError('has "${" without the name of a variable and "}"; write "$${" to mean the characters "${"')
        if name not in self._environment:
            raise ValueError(f"needs the environment variable {name}, which is not set")
        return self._environment[name]

    def _from_file(self, text: str, *, raw: str) -> str:
        file = self._folder / text.removeprefix("file:")
        try:
            secret = file.read_text("utf-8").removesuffix("\n").removesuffix("\r")
        except OSError as exc:
            raise ValueError(f"is {_shown(raw)}, which cannot be read: {exc.strerror}") from exc
        except ValueError:
            raise ValueError(f"is {_shown(raw)}, which is not a file of UTF-8 text") from None
        if not secret:
            raise ValueError(f"is {_shown(raw)}, which is empty")
        return secret

    def _meant(self, key: str, fields: Iterable[str]) -> str:
        if guess := nearest(key, fields):
            return guess
        tables = tables_of(self._root)
        elsewhere = " or ".join(
            heading for heading, table in tables if any(key == each.key for each in fields_of(table))
        )
        return f"it belongs under {elsewhere}" if elsewhere else f"the settings here are {', '.join(fields)}"

    def _note(self, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(path, text))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean …?" for the known word most like this one, or nothing."""
    guess = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{guess[0]}"?' if guess else ""


def _nothing(kind: Kind) -> object:
    """Return an empty value of the kind, so that the rest of the file can be checked."""
    if kind.table is None:
        return () if kind.item else ""
    fields = fields_of(kind.table)
    return kind.table(**{each.name: _nothing(each.kind) if each.is_required else each.default for each in fields})


def _heading(path: KeyPath) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _expect(wanted: type[T], kind: Kind, raw: object, *, heading: str) -> T:
    if isinstance(raw, wanted):
        return raw
    raise _wrong(kind, raw, heading=heading)


def _read(written: Written, value: object, *, kind: Kind, raw: object) -> object:
    # A bare number is read as text too, so that the error says which unit is missing.
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise _wrong(kind, raw)
    try:
        parsed = written.parse(str(value))
    except ValueError as exc:
        raise _wrong(kind, raw, because=str(exc)) from exc
    if not isinstance(value, str):
        raise _wrong(kind, raw)
    return parsed


def _fits(kind: Kind, value: object) -> bool:
    # Compared by type as well: True equals 1, and 8.0 equals 8.
    if kind.choices:
        return any(type(value) is type(choice) and value == choice for choice in kind.choices)
    return type(value) is kind.bare or (kind.bare is float and type(value) is int)


def _check_bounds(kind: Kind, value: object, *, raw: object) -> None:
    pattern, limits = kind.marker(Pattern), kind.marker(Range)
    if pattern and isinstance(value, str) and not re.fullmatch(pattern.regex, value):
        raise _wrong(kind, raw)
    if limits and isinstance(value, int | float) and not limits.low <= value <= limits.high:
        raise _wrong(kind, raw)


def _wrong(kind: Kind, raw: object, *, because: str = "", heading: str = "") -> ValueError:
    found = _type_word(raw) if kind.is_secret else _shown(raw)
    return ValueError(f"is {found}{': ' if because else ''}{because}; it must be {kind.allowed(heading)}")


def _shown(raw: object) -> str:
    """Show a value as the file has it; variables are not replaced, since what they hold may be secret."""
    if isinstance(raw, bool | str | int | float):
        text = json.dumps(raw, ensure_ascii=False)
        return text if len(text) <= 80 else f"{text[:76]}…"
    return _type_word(raw)


def _type_word(raw: object) -> str:
    match raw:
        case str():
            return "a text (not shown: it may be secret)"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case dict():
            return "a table"
    return "a date or time"
