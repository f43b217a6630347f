"""What /metrics and the log say."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import asdict

from prometheus_client.parser import text_string_to_metric_families

from backends.api import Health, SessionCounts, Usage
from gateway.log import LibraryLines, Log
from gateway.metrics import Metrics


def test_what_workers_do_about_sessions_is_told_by_replica() -> None:
    """Each count of a worker has its series; a replica without sessions has none."""
    metrics = Metrics()
    counts = SessionCounts(**{name: at for at, name in enumerate(SessionCounts.__dataclass_fields__)})

    metrics.observe_replicas([("m", "m/0", Health(ready=True, sessions=counts)), ("m", "m/1", Health(ready=True))])

    for name, count in asdict(counts).items():
        series = f"tidegate_session_{name}"
        assert metrics.registry.get_sample_value(series, {"model": "m", "replica": "m/0"}) == count
        assert metrics.registry.get_sample_value(series, {"model": "m", "replica": "m/1"}) is None


def test_what_the_session_store_tells_is_told_by_tier() -> None:
    """A tier that it names has its series; while it does not answer its last numbers stay, and it is down."""
    metrics = Metrics()
    assert b"tidegate_store" not in metrics.text()

    tiers = {"memory": {"bytes": 7, "chunks": 1}, "redis": {"bytes": None, "failing": True}}
    metrics.observe_store({"tiers": tiers, "counts": {"hits.memory": 3, "failed.redis": 2, "misses": 4}})
    metrics.observe_store(None)

    value = metrics.registry.get_sample_value
    memory, redis = {"tier": "memory"}, {"tier": "redis"}
    assert (value("tidegate_store_bytes", memory), value("tidegate_store_bytes", redis)) == (7, 0)
    assert (value("tidegate_store_hits", memory), value("tidegate_store_failed", redis)) == (3, 2)
    assert (value("tidegate_store_failing", redis), value("tidegate_store_misses")) == (1, 4)
    assert value("tidegate_store_hits", {"tier": "cold"}) is None
    assert value("tidegate_store_up") == 0


def test_every_series_is_ours_and_has_a_help_text() -> None:
    """All names begin with tidegate_ and explain themselves."""
    families = list(text_string_to_metric_families(Metrics().text().decode()))

    assert all(family.name.startswith("tidegate_") and family.documentation for family in families)


def test_the_replicas_loads_are_told() -> None:
    """The last load of each replica stands on /metrics."""
    metrics = Metrics()

    metrics.observe_replicas([("m", "m/stable/0", Health(ready=True, running=3, waiting=2, kv_blocks_used=5))])

    labels = {"model": "m", "replica": "m/stable/0"}
    series = ("tidegate_replica_ready", "tidegate_running_batch", "tidegate_waiting_calls", "tidegate_kv_blocks_used")
    assert [metrics.registry.get_sample_value(name, labels) for name in series] == [1, 3, 2, 5]


def test_tokens_are_summed() -> None:
    """Each call's tokens are added up for its model and tenant."""
    metrics = Metrics()

    metrics.observe_usage("m", "t", Usage(10, 3, 8))
    metrics.observe_usage("m", "t", Usage(1, 1))

    labels = {"model": "m", "tenant": "t"}
    names = ("tidegate_prompt_tokens_total", "tidegate_cached_tokens_total", "tidegate_completion_tokens_total")
    assert [metrics.registry.get_sample_value(name, labels) for name in names] == [11, 8, 4]


def test_a_line_for_people_is_an_event_with_words() -> None:
    """Values with spaces or quotes are quoted, so that a line can be taken apart again."""
    out = io.StringIO()

    Log(stream=out).event("request", path="/a b", status=200, ttft_ms=1.5)

    assert out.getvalue().split(maxsplit=1)[1] == 'info request path="/a b" status=200 ttft_ms=1.5\n'


def test_a_line_for_machines_is_one_object() -> None:
    """In JSON everything is on one line, tracebacks included."""
    out = io.StringIO()

    Log(form="json", stream=out).failure("bug", ValueError("x\ny"), request_id="r")

    line = json.loads(out.getvalue())
    assert (line["event"], line["level"], line["request_id"]) == ("bug", "error", "r")


def test_less_important_lines_are_left_out() -> None:
    """The level is the least that is printed."""
    out = io.StringIO()
    log = Log(level="warning", stream=out)

    log.event("request")
    log.event("worker.died", level="warning")

    assert "request" not in out.getvalue()
    assert "worker.died" in out.getvalue()


def test_what_libraries_warn_of_is_an_event() -> None:
    """Warnings of libraries come out in our form instead of into nowhere."""
    out = io.StringIO()
    lines = LibraryLines(Log(form="json", stream=out))

    lines.emit(logging.makeLogRecord({"name": "aiohttp", "levelno": logging.ERROR, "msg": "odd %s", "args": ("x",)}))

    assert json.loads(out.getvalue())["message"] == "odd x"
