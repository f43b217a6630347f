"""Every Prometheus series of the gateway, in its own registry.

Refuses to know what the numbers are used for. Labels are bounded: models, tenants and replicas of the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from backends.api import Health, Usage
from gateway.storemetrics import StoreSeries

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_CALL = ("model", "tenant")
_REPLICA = ("model", "replica")
_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


# What a replica's worker has done about sessions since it started; the keys are the fields of SessionCounts.
_SESSIONS = {
    "restores": "Prompts of which a beginning was restored.",
    "restored_tokens": "Tokens that were restored.",
    "restored_bytes": "Bytes that were fetched for them.",
    "restore_s": "Seconds that restoring took.",
    "restore_failures": "Restores that ended early; the rest was computed.",
    "recomputed_instead": "Prompts that were computed because that was faster.",
    "saves": "Answers whose session was saved.",
    "saved_tokens": "Tokens that were saved.",
    "saved_bytes": "Bytes that were saved.",
    "save_s": "Seconds that saving took.",
    "save_failures": "Saves that failed.",
    "waiting_saves": "Answers that wait to be saved.",
    "dropped_saves": "Answers that were not saved, for lack of room or because their blocks were gone.",
    "rechecks": "Restores that were computed too, to compare.",
    "recheck_tokens": "Tokens that were compared.",
    "recheck_disagreements": "Those of them after which another token would have been likeliest.",
}


class Metrics:
    """The series; each line of text below is its help on /metrics."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series and nobody asks for them
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "tidegate_requests_total",
            "Calls by HTTP status; 499 is a client that left.",
            (*_CALL, "status"),
            registry=registry,
        )
        self.ttft = Histogram(
            "tidegate_ttft_seconds",
            "From a call's arrival to its first token.",
            _CALL,
            buckets=_LATENCIES,
            registry=registry,
        )
        self.inter_token = Histogram(
            "tidegate_inter_token_seconds", "Between two deltas of a call.", _CALL, buckets=_GAPS, registry=registry
        )
        self.request = Histogram(
            "tidegate_request_seconds",
            "From a call's arrival to its end.",
            _CALL,
            buckets=_LATENCIES,
            registry=registry,
        )
        self.prompt_tokens = Counter("tidegate_prompt_tokens_total", "Tokens of prompts.", _CALL, registry=registry)
        self.cached_tokens = Counter(
            "tidegate_cached_tokens_total", "Tokens of prompts that were not computed again.", _CALL, registry=registry
        )
        self.restored_tokens = Counter(
            "tidegate_restored_tokens_total",
            "Those of them that came from a tier of the session store.",
            (*_CALL, "tier"),
            registry=registry,
        )
        self.completion_tokens = Counter(
            "tidegate_completion_tokens_total", "Tokens of answers.", _CALL, registry=registry
        )
        self.open_streams = Gauge("tidegate_open_streams", "Calls that are being answered now.", registry=registry)
        self.running = Gauge("tidegate_running_batch", "Sequences in a replica's batch.", _REPLICA, registry=registry)
        self.waiting = Gauge("tidegate_waiting_calls", "Calls that wait in a replica.", _REPLICA, registry=registry)
        self.ready = Gauge("tidegate_replica_ready", "1 while a replica serves.", _REPLICA, registry=registry)
        self.kv_blocks_used = Gauge("tidegate_kv_blocks_used", "KV blocks in use.", _REPLICA, registry=registry)
        self.kv_blocks_total = Gauge("tidegate_kv_blocks", "KV blocks that a replica has.", _REPLICA, registry=registry)
        self.drafted_tokens = Gauge(
            "tidegate_drafted_tokens", "Tokens guessed ahead since the worker started.", _REPLICA, registry=registry
        )
        self.accepted_tokens = Gauge(
            "tidegate_accepted_tokens", "Those of them that were right.", _REPLICA, registry=registry
        )
        self.sessions = {
            name: Gauge(f"tidegate_session_{name}", text, _REPLICA, registry=registry)
            for name, text in _SESSIONS.items()
        }
        self.worker_restarts = Counter(
            "tidegate_worker_restarts_total", "Workers started again after they died.", _REPLICA, registry=registry
        )

        self.store: StoreSeries | None = None  # without a session store there is nothing to tell

    def observe_store(self, stats: Mapping[str, Any] | None) -> None:
        """Take over what the session store tells; None when it does not answer."""
        self.store = self.store or StoreSeries(self.registry)
        self.store.observe(stats)

    def observe_replicas(self, loads: Iterable[tuple[str, str, Health]]) -> None:
        """Take over the loads of replicas, as (model, replica, health)."""
        for model, replica, health in loads:
            self.ready.labels(model, replica).set(health.ready)
            self.running.labels(model, replica).set(health.running)
            self.waiting.labels(model, replica).set(health.waiting)
            self.kv_blocks_used.labels(model, replica).set(health.kv_blocks_used)
            self.kv_blocks_total.labels(model, replica).set(health.kv_blocks_total)
            self.drafted_tokens.labels(model, replica).set(health.drafted_tokens)
            self.accepted_tokens.labels(model, replica).set(health.accepted_tokens)
            for name, count in asdict(health.sessions).items() if health.sessions is not None else ():
                self.sessions[name].labels(model, replica).set(count)

    def observe_usage(self, model: str, tenant: str, usage: Usage) -> None:
        """Count the tokens of a call that has ended."""
        self.prompt_tokens.labels(model, tenant).inc(usage.prompt_tokens)
        self.cached_tokens.labels(model, tenant).inc(usage.cached_tokens)
        if usage.restored_tokens:
            self.restored_tokens.labels(model, tenant, usage.restored_from).inc(usage.restored_tokens)
        self.completion_tokens.labels(model, tenant).inc(usage.completion_tokens)

    def text(self) -> bytes:
        """Write all series in Prometheus's text form."""
        return generate_latest(self.registry)
