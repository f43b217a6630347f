"""A request path with scripted replicas and an exchange on paper, for tests that need no socket."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from backends.api import BackendError, Call, Delta, Health, Replica, Usage
from gateway.auth import open_tenants
from gateway.chat import RequestPath
from gateway.deadlines import Deadlines
from gateway.dialects.openai import Chat
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.readiness import Readiness
from gateway.routing import Models
from gateway.settings import Config, Model, Release, TenantSettings

Line = Delta | BackendError | BaseException | asyncio.Event
HELLO = (Delta(text="hel", tokens=1), Delta(text="lo", tokens=1, finish="stop", usage=Usage(5, 2, 4)))


def unreachable() -> BackendError:
    """Give a failure that may be tried elsewhere."""
    return BackendError("unreachable", "nobody there", retryable=True)


class Scripted:
    """A backend that says its lines: deltas are yielded, exceptions raised, events waited for."""

    def __init__(self, *lines: Line, is_ready: bool = True) -> None:
        self.lines, self.is_ready = lines, is_ready
        self.calls = self.open = 0
        self.asked: Call | None = None
        self.was_asked = asyncio.Event()

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        """Say the lines."""
        self.asked = call
        self.calls += 1
        self.open += 1
        self.was_asked.set()
        try:
            for line in self.lines:
                if isinstance(line, BaseException):
                    raise line
                if isinstance(line, asyncio.Event):
                    await line.wait()
                else:
                    yield line
        finally:
            self.open -= 1

    async def tokenize(self, call: Call) -> list[list[int]]:
        """Give the first line as a failure, or three tokens."""
        del call
        if self.lines and isinstance(self.lines[0], BaseException):
            raise self.lines[0]
        return [[1, 2, 3]]

    async def health(self) -> Health:
        """Report what the test has set."""
        return Health(ready=self.is_ready, context_tokens=100)

    async def close(self) -> None:
        """Nothing to free."""


@dataclass
class Paper:
    """An exchange that writes down its answer; `on_write` stands for the client's side of the socket."""

    sent: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    path: str = "/v1/chat/completions"
    query: str = ""
    peer: str = "test"
    on_write: Callable[[bytes], None] = lambda _: None
    status: int = 0
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    written: bytes = b""
    is_ended: bool = False

    async def body(self, limit: int) -> bytes:
        """Give what the client sent."""
        del limit
        return self.sent

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Note the head; there is only one."""
        assert not self.status
        self.status, self.answer_headers = status, headers

    async def write(self, chunk: bytes) -> None:
        """Note a piece."""
        assert self.status
        self.on_write(chunk)
        self.written += chunk

    async def end(self) -> None:
        """Note the end."""
        assert not self.is_ended
        self.is_ended = True

    @property
    def json(self) -> dict[str, dict[str, str]]:
        """The answer as JSON."""
        return json.loads(self.written)


def chat(*, stream: bool = False, **fields: object) -> bytes:
    """Give the body of a small chat call."""
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream} | fields
    ).encode()


class Bench:
    """A request path over scripted replicas of one model, and what it logged."""

    def __init__(
        self,
        *backends: Scripted,
        limit_s: float = 60,
        tenants: Sequence[TenantSettings] = (),
        most: int = 9,
        ping_interval_s: float = 60,
    ) -> None:
        config = Config(
            models=(Model(name="m", aliases=("also",), releases=(Release(source="echo"),)),), tenants=tuple(tenants)
        )
        replicas = [Replica(f"m/stable/{i}", "m", "stable", backend) for i, backend in enumerate(backends)]
        self.lines = io.StringIO()
        self.path = RequestPath(
            max_body_bytes=1 << 20,
            ping_interval_s=ping_interval_s,
            deadlines=Deadlines(limit_s),
            tenants=open_tenants(config),
            models=Models(config.models),
            replicas=lambda: replicas,
            readiness=Readiness(most=most, patience_s=5),
            metrics=Metrics(),
            log=Log(form="json", stream=self.lines),
        )

    async def ask(self, body: bytes, **paper: object) -> Paper:
        """Answer one chat call."""
        exchange = Paper(body, **paper)
        await self.path.handle(Chat(), exchange)
        return exchange

    @property
    def log(self) -> list[dict[str, object]]:
        """The events logged so far."""
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]

    def count(self, series: str, **labels: str) -> float | None:
        """Give the value of a series."""
        return self.path.metrics.registry.get_sample_value(series, labels or None)
