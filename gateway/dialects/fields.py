"""Typed readers for the fields of a JSON body; each refuses what is wrong with the field's path and what is allowed.

Refuses to know any API's field names. Null is the same as absent everywhere, because clients send both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import orjson

from gateway.refusal import Refusal

Default = TypeVar("Default")
Closed = TypeVar("Closed", bound=str)

_QUOTED_CHARACTERS = 60
_KINDS: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
}


def refusal(path: str, message: str, *, code: str = "invalid_value") -> Refusal:
    """Return a 400 about the field at `path`; the message continues the sentence that the path begins."""
    return Refusal(400, code, f"{path} {message}", param=path)


def quoted(value: object) -> str:
    """Write a value of the caller's in a message, cut when it is long."""
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return "nested too deeply"
    return text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}…"


def as_json(value: object, path: str) -> str:
    """Return the value as JSON text; what can be read can be nested too deeply to be written."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as exc:
        raise refusal(path, "is nested too deeply") from exc


def one_of(allowed: Iterable[str]) -> str:
    """Write alternatives as in a sentence: a, b or c."""
    *most, last = allowed
    return f"{', '.join(most)} or {last}" if most else last


def parse_object(body: bytes) -> Fields:
    """Read the body as one JSON object, or refuse it with the line and column where it stops being one."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        raise Refusal(400, "invalid_json", f"the body is not valid JSON ({where}): {exc.msg}") from exc
    if type(value) is not dict:
        raise Refusal(400, "invalid_type", f"the body must be a JSON object, not {_KINDS.get(type(value), 'null')}")
    return Fields(value, "")


class Fields:
    """The fields of one object in the body; `path` is where it stands, empty for the body itself."""

    __slots__ = ("path", "values")

    def __init__(self, values: dict[str, object], path: str) -> None:
        self.values, self.path = values, path

    def path_of(self, name: str) -> str:
        """Return the path of one field of this object."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Whether the field is given and not null."""
        return self.values.get(name) is not None

    def require(self, name: str) -> None:
        """Refuse the body if the field is missing."""
        if not self.has(name):
            raise refusal(self.path_of(name), "is missing; it is required", code="missing_required_parameter")

    def text(self, name: str, default: Default) -> str | Default:
        """Return a string."""
        value = self.values.get(name)
        return default if value is None else _typed(value, str, self.path_of(name))

    def required_text(self, name: str) -> str:
        """Return a string that must be there and not be empty."""
        self.require(name)
        value = self.text(name, "")
        if not value:
            raise refusal(self.path_of(name), "is empty; it is required", code="missing_required_parameter")
        return value

    def choice(self, name: str, allowed: tuple[Closed, ...]) -> Closed:
        """Return one of a closed set of strings; it must be there."""
        self.require(name)
        value = _typed(self.values[name], str, self.path_of(name))
        if value not in allowed:
            raise refusal(self.path_of(name), f"is {quoted(value)}; it may be {one_of(allowed)}")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.values.get(name)
        return default if value is None else _typed(value, bool, self.path_of(name))

    def integer(self, name: str, default: Default, *, low: int, high: int) -> int | Default:
        """Return an integer of the range; 1.0 is none."""
        value = self.values.get(name)
        if value is None:
            return default
        return _within(_typed(value, int, self.path_of(name)), low, high, self.path_of(name))

    def number(self, name: str, default: Default, *, low: float, high: float) -> float | Default:
        """Return a number of the range."""
        value = self.values.get(name)
        if value is None:
            return default
        return float(_within(number(value, self.path_of(name)), low, high, self.path_of(name)))

    def array(self, name: str, *, longest: int) -> list[object]:
        """Return an array of at most `longest` items; missing is empty."""
        value = self.values.get(name)
        if value is None:
            return []
        items = _typed(value, list, self.path_of(name))
        if len(items) > longest:
            raise refusal(self.path_of(name), f"has {len(items)} items; at most {longest} are allowed")
        return items

    def objects(self, name: str, *, longest: int) -> list[Fields]:
        """Return an array of objects."""
        path = self.path_of(name)
        return [as_object(item, f"{path}[{i}]") for i, item in enumerate(self.array(name, longest=longest))]

    def child(self, name: str) -> Fields:
        """Return an object; missing is one without fields."""
        value = self.values.get(name)
        return Fields({}, self.path_of(name)) if value is None else as_object(value, self.path_of(name))

    def unsupported(self, name: str, *, unless: tuple[object, ...] = ()) -> None:
        """Refuse any value but the given ones of a field whose effect cannot be given; silence would be a lie."""
        value = self.values.get(name)
        if value is not None and value not in unless:
            allowed = f"leave it out or write {one_of(map(quoted, unless))}" if unless else "leave it out"
            raise refusal(
                self.path_of(name), f"is {quoted(value)}, which is not supported; {allowed}", code="unsupported_value"
            )


def as_object(value: object, path: str) -> Fields:
    """Return the value as an object."""
    return Fields(_typed(value, dict, path), path)


def as_text(value: object, path: str) -> str:
    """Return the value as a string."""
    return _typed(value, str, path)


def as_integer(value: object, path: str, *, low: int, high: int) -> int:
    """Return the value as an integer of the range."""
    return _within(_typed(value, int, path), low, high, path)


def number(value: object, path: str) -> float:
    """Return the value as a number; integers are numbers, booleans are not."""
    if type(value) is int or type(value) is float:
        return value
    raise _wrong_type(value, "a number", path)


Json = TypeVar("Json", str, bool, int, list[object], dict[str, object])


def _typed(value: object, kind: type[Json], path: str) -> Json:
    if type(value) is kind:  # not isinstance: a JSON boolean is no integer
        return value
    raise _wrong_type(value, _KINDS[kind], path)


def _wrong_type(value: object, wanted: str, path: str) -> Refusal:
    return refusal(path, f"must be {wanted}, not {_KINDS.get(type(value), 'null')}", code="invalid_type")


Number = TypeVar("Number", int, float)


def _within(value: Number, low: Number, high: Number, path: str) -> Number:
    if low <= value <= high:
        return value
    raise refusal(path, f"is {value}; it may be {low} to {high}")
