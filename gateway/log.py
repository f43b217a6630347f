"""What the gateway says about itself: an event name and key=values a line, for people or as JSON.

Refuses to know prompts, keys and tokens: callers pass names, counts and times only.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import IO, Literal

import orjson

Level = Literal["debug", "info", "warning", "error"]
_RANK: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """Lines of at least `level` on `stream`, each written whole."""

    def __init__(
        self, *, level: Level = "info", form: Literal["console", "json"] = "console", stream: IO[str] | None = None
    ) -> None:
        self._least, self._form = _RANK[level], form
        self._stream = sys.stderr if stream is None else stream

    def event(self, name: str, *, level: Level = "info", **fields: object) -> None:
        """Say that something happened."""
        self.write(level, name, fields)

    def write(self, level: Level, name: str, fields: dict[str, object]) -> None:
        """Write one event's line, if it is important enough."""
        if _RANK[level] >= self._least:
            line = _as_json if self._form == "json" else _as_text
            self._stream.write(line(time.time(), level, name, fields))
            self._stream.flush()

    def failure(self, name: str, exc: BaseException, **fields: object) -> None:
        """Say that a bug showed itself, with where."""
        formatter = logging.Formatter()
        self.event(
            name, level="error", **fields, traceback=formatter.formatException((type(exc), exc, exc.__traceback__))
        )


class LibraryLines(logging.Handler):
    """Takes what libraries say with the standard library's logging into a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record as an event named after its logger."""
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        fields = {"message": record.getMessage()} | ({"traceback": trace} if trace else {})
        self._log.event(f"library.{record.name}", level=level, **fields)


def _as_json(now: float, level: Level, name: str, fields: dict[str, object]) -> str:
    line = {"time": round(now, 3), "level": level, "event": name, **fields}
    return orjson.dumps(line, default=str).decode() + "\n"


def _as_text(now: float, level: Level, name: str, fields: dict[str, object]) -> str:
    trace = fields.pop("traceback", None)
    words = [time.strftime("%H:%M:%S", time.localtime(now)), level, name]
    words += [f"{key}={_word(value)}" for key, value in fields.items()]
    return " ".join(words) + "\n" + (f"{trace}\n" if trace else "")


def _word(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if text and text.isprintable() and " " not in text and '"' not in text else orjson.dumps(text).decode()
