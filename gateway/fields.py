"""What a dataclass of settings says about each key: its kind, default, allowed values and meaning.

Refuses to know any setting by name, and files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
_BARE_WORDS: dict[object, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True)
class Doc:
    """What a setting does, in a sentence or two."""

    text: str


@dataclass(frozen=True, slots=True)
class Range:
    """The lowest and highest value allowed, both included, in the unit that code uses."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Key:
    """The key in the file where it is not the field's name without its unit."""

    name: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text must match all of `regex`; `says` completes "it must be …"."""

    regex: str
    says: str


@dataclass(frozen=True, slots=True)
class Items:
    """The fewest items an array may have."""

    fewest: int


@dataclass(frozen=True, slots=True)
class Secret:
    """The value is never shown, and "file:/path" reads it from a file."""


@dataclass(frozen=True, slots=True)
class FilePath:
    """A relative path counts from the folder of gateway.toml; a text that matches all of `unless` is not a path.

    `prefix` stands before the path.
    """

    unless: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """A value that the file holds as text: how it is read, shown and described.

    `suffix` is the unit that the field's name ends with and the file's key does not; `regex` is for editors alone.
    """

    parse: Callable[[str], object]
    show: Callable[[object], str]
    says: str
    regex: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A field's type taken apart: the bare type and what was annotated to it."""

    bare: object
    markers: tuple[object, ...] = ()

    def marker(self, wanted: type[T]) -> T | None:
        """Return the marker of that type, if the field has it."""
        return next((marker for marker in self.markers if isinstance(marker, wanted)), None)

    @property
    def table(self) -> type | None:
        """The dataclass, when the file holds a table here."""
        is_table = dataclasses.is_dataclass(self.bare) and self.marker(Written) is None
        return self.bare if is_table and isinstance(self.bare, type) else None

    @property
    def item(self) -> Kind | None:
        """The kind of each item, when the file holds an array here."""
        return kind_of(get_args(self.bare)[0]) if get_origin(self.bare) is tuple else None

    @property
    def choices(self) -> tuple[object, ...]:
        """The only values allowed, when they are listed."""
        return get_args(self.bare) if get_origin(self.bare) is Literal else ()

    @property
    def is_secret(self) -> bool:
        """Whether it, or what it holds, must never be shown."""
        return self.marker(Secret) is not None or (self.item is not None and self.item.is_secret)

    @property
    def limits(self) -> str:
        """The range as people write it, or nothing."""
        limits, written = self.marker(Range), self.marker(Written)
        show = written.show if written else str
        return f"{show(limits.low)} to {show(limits.high)}" if limits else ""

    def allowed(self, heading: str = "heading") -> str:
        """Return what the value must be, as words that follow "it must be"; `heading` is a table's own."""
        words = self._words(heading)
        return f"{words}, from {self.limits}" if self.limits else words

    def _words(self, heading: str) -> str:
        if says := self.marker(Written) or self.marker(Pattern):
            return says.says
        if self.choices:
            return "one of " + ", ".join(
                f'"{value}"' if isinstance(value, str) else str(value) for value in self.choices
            )
        if self.item:
            many = f"an array of tables, each under [[{heading}]]"
            return many if self.item.table else f"an array, each item {self.item.allowed()}"
        return f"a table, under [{heading}]" if self.table else _BARE_WORDS[self.bare]


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a table: `name` in code, `key` in the file."""

    name: str
    key: str
    kind: Kind
    default: object

    @property
    def is_required(self) -> bool:
        """Whether the file must give it a value."""
        return self.default is dataclasses.MISSING

    @property
    def doc(self) -> str:
        """What it does; a table's own docstring says it for the table."""
        inner = self.kind.item or self.kind
        doc = self.kind.marker(Doc)
        return doc.text if doc else str(inner.table.__doc__) if inner.table else ""


def kind_of(hint: object) -> Kind:
    """Take a type and its annotations apart."""
    if get_origin(hint) is Annotated:
        bare, *markers = get_args(hint)
        return Kind(bare, tuple(markers))
    return Kind(hint)


def fields_of(table: type) -> tuple[Field, ...]:
    """Return the keys of a dataclass of settings, in their order."""
    hints = get_type_hints(table, include_extras=True)
    return tuple(_field(each, kind_of(hints[each.name])) for each in dataclasses.fields(table))


def _field(each: dataclasses.Field[object], kind: Kind) -> Field:
    named, written = kind.marker(Key), kind.marker(Written)
    key = named.name if named else each.name.removesuffix(written.suffix if written else "")
    return Field(each.name, key, kind, each.default)


def tables_of(table: type, outer: tuple[str, ...] = ()) -> Iterator[tuple[str, type]]:
    """Yield each table below `table`, outermost first, with its heading as the file writes it."""
    for each in fields_of(table):
        names = (*outer, each.key)
        if inner := each.kind.table:
            yield f"[{'.'.join(names)}]", inner
            yield from tables_of(inner, names)
        elif each.kind.item and (inner := each.kind.item.table):
            yield f"[[{'.'.join(names)}]]", inner
            yield from tables_of(inner, names)
