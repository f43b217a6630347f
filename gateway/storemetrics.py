"""The Prometheus series of the session store: what it holds, which tiers answer, and which fail.

All are gauges of what the store has told last; its counts begin anew with its process. What it
does not tell is 0. Refuses to know how a store is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

_HELD = {
    "bytes": "Bytes that a tier holds; of Redis and cold, as they were listed last.",
    "most_bytes": "Bytes that the store's memory may have.",
    "chunks": "Chunks that a tier holds.",
    "dropped": "Chunks that left the store's memory to make room.",
    "failing": "1 while a tier fails and is mostly left alone.",
}
_TOTALS = {
    "lookups": "Prefixes that were looked up.",
    "misses": "Chunks that were asked for and that no tier gave.",
    "saved": "Chunks that were saved.",
}
_BY_TIER = {
    "hits": "Chunks that a tier gave.",
    "failed": "Calls that a tier failed at; growing means that it is away, full or slow.",
    "skipped": "Calls that a failing tier was spared.",
    "corrupt": "Copies that were not sound; the next tier was asked, or the chunk computed.",
}


class StoreSeries:
    """The series; each line of text above and below is its help on /metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.up = self._gauge("up", "1 while the session store answers.")
        self.warm = self._gauge("warm_sessions", "Sessions that are not in the cold tier alone.")
        self.demoted = self._gauge("demoted_sessions", "Sessions that were moved to the cold tier.")
        self.held = {name: self._gauge(name, text, "tier") for name, text in _HELD.items()}
        self.totals = {name: self._gauge(name, text) for name, text in _TOTALS.items()}
        self.by_tier = {name: self._gauge(name, text, "tier") for name, text in _BY_TIER.items()}

    def observe(self, stats: Mapping[str, Any] | None) -> None:
        """Take over what the store told; None when it did not answer, and its last numbers stay."""
        self.up.set(stats is not None)
        if stats is None:
            return
        counts = stats.get("counts", {})
        self.warm.set(stats.get("sessions_warm", 0))
        self.demoted.set(stats.get("demoted", 0))
        for name, series in self.totals.items():
            series.set(counts.get(name, 0))
        for tier, held in stats.get("tiers", {}).items():
            for name in self.held.keys() & held.keys():
                self.held[name].labels(tier).set(held[name] or 0)
        for name, count in counts.items():
            kind, _, tier = name.partition(".")
            if tier and kind in self.by_tier:
                self.by_tier[kind].labels(tier).set(count)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tidegate_store_{name}", text, labels, registry=self.registry)
