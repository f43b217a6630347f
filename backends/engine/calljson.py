"""One tool call as a JSON object, read character by character and repaired where a small model left it open.

Refuses to know what surrounds the object. Repair adds closers and leaves out what cannot be closed; it never adds
a character of an argument. Whatever is ready can be sent at once, as it stays a prefix of the repaired whole.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Literal

_FIRST_KEYS = frozenset({"name", "function", "arguments", "parameters", "type", "id"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})

# Readers are generators that are sent one character at a time; most return the character after what they read.
_Reader = Generator[None, str, str]


class _Refused(Exception):
    """The object is no call of a known tool."""


class _Interrupted(Exception):
    """The call ends before this character, which is no part of it."""


class CallObject:
    """A call of one of `names`, read from `{"name": …, "arguments": {…}}` and its relatives.

    With `name` given, the object is the arguments themselves. `state` is "open" until the object ends ("done") or
    turns out to be something else ("refused"); `taken` is all that was read.
    """

    def __init__(self, names: frozenset[str], *, name: str | None = None) -> None:
        self.name: str | None = None
        self.state: Literal["open", "done", "refused"] = "open"
        self.taken = ""
        self._names, self._given = names, name
        self._arguments: Arguments | None = None
        self._begun = self._wrapped = False
        self._reader = self._call()
        next(self._reader)

    @property
    def named(self) -> bool:
        """Whether this is certain to be a call, so that its name and arguments may be sent."""
        return self.name is not None and (self._arguments is not None or self.state == "done")

    def feed(self, text: str) -> int:
        """Read from `text`; return how many characters belong to the object."""
        for position, char in enumerate(text):
            try:
                self._reader.send(char)
            except StopIteration:
                self.state = "done"
                self.taken += text[: position + 1]
                return position + 1
            except (_Refused, _Interrupted) as end:
                self.state = "done" if isinstance(end, _Interrupted) else "refused"
                self.taken += text[:position]
                return position
        self.taken += text
        return len(text)

    def begins(self) -> bool:
        """Whether the name is told for the first time."""
        first, self._begun = not self._begun, True
        return first

    def take(self) -> str:
        """Argument text that has become ready since the last time."""
        if self._arguments is None:
            self._arguments = Arguments.of("{}")
        return self._arguments.take()

    def close(self, *, repair: bool) -> None:
        """No more text comes: send what is held, with closers when it shall be repaired."""
        if self._arguments is not None:
            self._arguments.close(repair=repair)

    def _call(self) -> Generator[None, str, None]:
        char = yield
        if self._given is not None:
            self._take_name(self._given)
            yield from self._read_arguments(char)
            return
        yield from self._members()
        if self.name is None:
            raise _Refused

    def _members(self) -> Generator[None, str, None]:
        char = yield from _after_space()
        first = True
        while char == '"':
            key = yield from _string()
            if first and key not in _FIRST_KEYS:
                raise _Refused
            if (yield from _after_space()) != ":":
                self._stray()
            char = yield from self._value(key, (yield from _after_space()))
            if char == ",":
                char = yield from _after_space()
            first = False
        if char != "}":
            self._stray()

    def _value(self, key: str, char: str) -> _Reader:
        if key in _ARGUMENT_KEYS and self._arguments is None:
            return (yield from self._argument_value(char))
        if key in {"name", "function"} and char == '"':
            self._take_name((yield from _string()))
        elif key == "function" and char == "{" and not self._wrapped:
            self._wrapped = True
            yield from self._members()
        else:
            return (yield from _skipped(char))
        return (yield from _after_space())

    def _argument_value(self, char: str) -> _Reader:
        """Arguments are an object, the text of one, or null."""
        if char == "{":
            yield from self._read_arguments(char)
        elif char == '"':
            self._arguments = Arguments.of((yield from _string()))
        elif char == "n":
            return (yield from _skipped(char))
        else:
            raise _Refused
        return (yield from _after_space())

    def _read_arguments(self, char: str) -> Generator[None, str, None]:
        self._arguments = Arguments()
        while self._arguments.feed(char):
            if self._arguments.complete:
                return
            char = yield
        self._arguments.close(repair=True)
        self._stray()

    def _take_name(self, name: str) -> None:
        if self.name is None:
            if name not in self._names:
                raise _Refused
            self.name = name

    def _stray(self) -> None:
        """Meet a character that has no place here: the call is over if there is one, else this never was one."""
        if self.name is None or self._arguments is None:
            raise _Refused
        raise _Interrupted


class Arguments:
    """A JSON object whose text is passed on as soon as whatever follows can only complete it.

    Held back are keys until their value begins, scalars until they end, and halves of an escape.
    """

    def __init__(self) -> None:
        self._open: list[str] = []  # the closers that are owed
        self._string: Literal["", "key", "value"] = ""
        self._escape = 0  # characters of an escape still to come
        self._last = ""
        self._held = ""
        self._sent: list[str] = []
        self._ready = ""

    @classmethod
    def of(cls, text: str) -> Arguments:
        """Arguments that are there at once; empty text is an empty object."""
        arguments = cls()
        stripped = text.strip() or "{}"
        if not stripped.startswith("{"):
            raise _Refused
        for char in stripped:
            if arguments.complete or not arguments.feed(char):
                break
        arguments.close(repair=True)
        return arguments

    @property
    def complete(self) -> bool:
        """Whether the object's last brace was read or put."""
        return self._last == "}" and not self._open

    def feed(self, char: str) -> bool:
        """Take one character; False when it belongs to a tag after the object."""
        if self._string:
            self._in_string(char)
        elif char == "<":
            return False
        else:
            self._between_strings(char)
        return True

    def take(self) -> str:
        """Text that has become ready since the last time."""
        ready, self._ready = self._ready, ""
        return ready

    def close(self, *, repair: bool) -> None:
        """No more text comes: pass on what is held, with closers when it shall be repaired."""
        if self.complete:
            return
        if repair:
            self._held = self._ending()
        self._flush()
        self._open, self._last = [], "}"

    def _in_string(self, char: str) -> None:
        self._held += char
        if self._escape:
            self._escape = 4 if char == "u" and self._last == "\\" else self._escape - 1
            self._last = '"'
        elif char == "\\":
            self._escape, self._last = 1, char
        elif char == '"':
            is_value, self._string = self._string == "value", ""
            self._last = char
            if is_value:
                self._flush()
        if self._string == "value" and not self._escape:
            self._flush()

    def _between_strings(self, char: str) -> None:
        if char in "}]":
            self._pop(char)
        else:
            if char == "," and self._last not in {":", ","}:
                self._flush()  # the scalar before it has ended
            self._held += char
        if char == '"':
            self._string = "key" if self._open[-1] == "}" and self._last in {"{", ","} else "value"
        elif char in "{[":
            self._open.append("}" if char == "{" else "]")
            self._flush()
        if not char.isspace():
            self._last = char

    def _pop(self, char: str) -> None:
        """Close up to the nearest opener of this kind; a comma before it is one too many."""
        if self._last == ",":
            self._held = self._held.rstrip().removesuffix(",")
        while char in self._open and (owed := self._open.pop()) != char:
            self._held += owed
        self._held += char
        self._flush()

    def _ending(self) -> str:
        """Choose what makes the whole valid, without what is held if need be; garbage is passed on as it is."""
        owed = "".join(reversed(self._open))
        quoted = '"' + owed if self._string else owed
        sent = "".join(self._sent)
        endings = (self._held + quoted, quoted, owed)
        return next((ending for ending in endings if _is_json(sent + ending)), self._held)

    def _flush(self) -> None:
        self._sent.append(self._held)
        self._ready += self._held
        self._held = ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _after_space() -> _Reader:
    char = yield
    while char.isspace():
        char = yield
    return char


def _string() -> _Reader:
    """Read and decode the string whose opening quote was just read."""
    raw = ""
    char = yield
    while char != '"':
        raw += char
        if char == "\\":
            raw += yield
        char = yield
    try:
        return str(json.loads(f'"{raw}"', strict=False))
    except ValueError as exc:
        raise _Refused from exc


def _skipped(char: str) -> _Reader:
    """Read a value of no interest; return the first character after it that is not space."""
    if char == '"':
        yield from _string()
        return (yield from _after_space())
    if char in "{[":
        yield from _nested(char)
        return (yield from _after_space())
    while char not in ",}]<" and not char.isspace():
        char = yield
    return char if not char.isspace() else (yield from _after_space())


def _nested(char: str) -> Generator[None, str, None]:
    depth = 0
    while True:
        if char == '"':
            yield from _string()
        depth += (char in "{[") - (char in "}]")
        if depth == 0:
            return
        char = yield
