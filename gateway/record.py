"""What metrics and the access log will say about one request.

Refuses to know prompts, keys and texts: names, counts and times only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from prometheus_client import Histogram

from backends.api import Delta, Usage
from gateway.exchange import Exchange
from gateway.log import Log
from gateway.metrics import Metrics

UNKNOWN = "unknown"


@dataclass(slots=True)
class Record:
    """Filled in while a request is answered; times are in seconds on one clock."""

    exchange: Exchange
    request_id: str
    started: float
    status: int = 0
    code: str = ""
    tenant: str = UNKNOWN
    model: str = UNKNOWN
    replica: str = ""
    session: str | None = None
    usage: Usage | None = None
    tokens: int = 0
    first: float | None = None
    last: float = 0.0
    gaps: Histogram | None = field(default=None, repr=False)

    def saw(self, delta: Delta, now: float, metrics: Metrics) -> None:
        """Take in one delta of the answer."""
        self.tokens += delta.tokens
        self.usage = delta.usage or self.usage
        if self.first is None or self.gaps is None:
            if delta.says_something:
                self.first, self.gaps = now, metrics.inter_token.labels(self.model, self.tenant)
        else:
            self.gaps.observe(now - self.last)
        self.last = now

    def settle(self, metrics: Metrics, log: Log, *, now: float) -> None:
        """Count the request and write its line."""
        labels = (self.model, self.tenant)
        metrics.requests.labels(*labels, str(self.status)).inc()
        metrics.request.labels(*labels).observe(now - self.started)
        if self.first is not None:
            metrics.ttft.labels(*labels).observe(self.first - self.started)
        usage = self._counted()
        metrics.observe_usage(*labels, usage)
        log.write("info", "request", self._line(usage, now))

    def _counted(self) -> Usage:
        """Return the backend's counts, or of an answer broken off what was seen of it."""
        seen = self.usage or Usage(0, 0)
        return replace(seen, completion_tokens=max(seen.completion_tokens, self.tokens))

    def _line(self, usage: Usage, now: float) -> dict[str, object]:
        line: dict[str, object] = {
            "method": self.exchange.method,
            "path": self.exchange.path,
            "status": self.status,
            "code": self.code,
            "model": self.model,
            "replica": self.replica,
            "tenant": self.tenant,
            "ttft_ms": None if self.first is None else round((self.first - self.started) * 1000, 1),
            "duration_ms": round((now - self.started) * 1000, 1),
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "restored_tokens": usage.restored_tokens or None,
            "restored_from": usage.restored_from,
            "diverged": usage.diverged,
            "tokens": usage.completion_tokens,
            "request_id": self.request_id,
        }
        return {name: value for name, value in line.items() if value not in (None, "")}
