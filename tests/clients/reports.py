"""What a client is asked to do and what it tells of it, the same for every client, in Python and in JavaScript.

A report is plain JSON: `text`, `finish` and `prompt_tokens` of an answer, `tool` for a call with `name` and
`arguments`, `parsed` for structured output, `names` for a list of models, `error` for what was raised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Report = dict[str, Any]
COLOURS = "Name three colours."
PATIENCE_S = 240.0


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to ask for: `url` is the gateway's, without /v1; `headers` are sent along where the client can.

    `timeout_s` is set in the client; after `patience_s` it is reported as waiting, whatever it does.
    """

    url: str
    model: str
    prompt: str = COLOURS
    max_tokens: int = 16
    timeout_s: float = 120
    patience_s: float = PATIENCE_S
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def v1(self) -> str:
        """The address that OpenAI's clients want."""
        return f"{self.url}/v1"

    def said(self) -> list[Any]:
        """Give the conversation of one message."""
        return [{"role": "user", "content": self.prompt}]

    def about(self, prompt: str) -> Task:
        """Ask for something else."""
        return replace(self, prompt=prompt)


Feature = Callable[[Task], Report]

WEATHER = "What is the weather in Paris?"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
COLOUR = {
    "type": "object",
    "properties": {"name": {"type": "string", "enum": ["red", "green"]}, "level": {"type": "integer"}},
    "required": ["name", "level"],
    "additionalProperties": False,
}


def attempt(feature: Feature, task: Task) -> Report:
    """Do it, or report what was raised."""
    try:
        return feature(task)
    except Exception as exc:  # noqa: BLE001 (whatever a client raises is what its users see)
        return {"error": error(exc)}


def error(exc: BaseException) -> Report:
    """Name what was raised as a user would: its class, the HTTP status if it tells one, and its message."""
    return {
        "type": type(exc).__name__,
        "status": getattr(exc, "status_code", None),
        "message": str(exc),
        "request_id": getattr(exc, "request_id", None),
    }
