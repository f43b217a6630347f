"""What is wrong with a configuration file, and on which line of it.

Refuses to know the settings; it reads TOML only as far as finding the line of a key needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|\#[^\n]*|[\[\]{}=\n]",
    re.DOTALL,
)
_KEY = re.compile(r"""[ \t]*(?:"((?:\\.|[^"\\\n])*)"|'([^'\n]*)'|([A-Za-z0-9_-]+))[ \t]*\.?""")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at `path`; `reads` are the paths whose values were compared to find it."""

    path: KeyPath
    text: str
    reads: tuple[KeyPath, ...] = ()

    def is_hidden_by(self, broken: Iterable[KeyPath]) -> bool:
        """Whether a value that was compared is itself broken, so that this may be only a consequence."""
        return any(ours[: len(theirs)] == theirs[: len(ours)] for theirs in broken for ours in self.reads)


class ConfigError(Exception):
    """A configuration that cannot be used; `problems` is every reason, a line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(describe(self.problems))


def describe(problems: Iterable[str]) -> str:
    """Write the problems below each other, after their count."""
    lines = tuple(problems)
    heading = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join((f"{heading} in the configuration:", *(f"  {line}" for line in lines)))


def path_text(path: KeyPath) -> str:
    """Write a path as people do: models[0].releases[1].source."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_quoted(part)}" for part in path).removeprefix(".")


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def sentences(problems: Iterable[Problem], *, file: str, text: str) -> tuple[str, ...]:
    """Write each problem with its file and line, in the order of the lines."""
    lines = key_lines(text)
    placed = sorted(((_line_of(problem.path, lines), problem) for problem in problems), key=lambda pair: pair[0])
    return tuple(
        f"{file}:{f'{line}:' if line else ''} {path_text(problem.path)} {problem.text}" for line, problem in placed
    )


def _line_of(path: KeyPath, lines: dict[KeyPath, int]) -> int:
    """Return the line of the key, or of the nearest table around it; 0 when the file has neither."""
    around = (path[:length] for length in range(len(path), 0, -1))
    return next((lines[part] for part in around if part in lines), 0)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line of every heading and key of a valid TOML text; what inline tables hold is not looked into."""
    lines: dict[KeyPath, int] = {}
    rows: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        if statement.startswith("["):
            table = _heading(statement, rows)
            lines.setdefault(table, line)
        else:
            lines[(*table, *_keys(statement))] = line
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each heading and key-value pair with its line; brackets and quotes may span lines."""
    start = depth = 0
    for token in _TOKEN.finditer(text + "\n"):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if token[0] == "\n" and depth == 0:
            statement = text[start : token.start()].strip()
            if statement and not statement.startswith("#"):
                yield text.count("\n", 0, start) + 1, statement
            start = token.end()


def _heading(statement: str, rows: dict[KeyPath, int]) -> KeyPath:
    """Return the path of a heading; `rows` counts the tables of each [[array]] so far."""
    *outer, last = _keys(statement.lstrip("["))
    path: KeyPath = ()
    for key in outer:
        path = (*path, key)
        path = (*path, rows[path]) if path in rows else path
    path = (*path, last)
    if statement.startswith("[["):
        rows[path] = rows.get(path, -1) + 1
    return (*path, rows[path]) if path in rows else path


def _keys(text: str) -> list[str]:
    """Return the parts of the dotted key that `text` begins with."""
    keys, at = [], 0
    while match := _KEY.match(text, at):
        keys.append(match[1] or match[2] or match[3] or "")
        at = match.end()
        if not match[0].endswith("."):
            break
    return keys
