"""How long to wait before something that died is started again. Refuses to know what died."""

from __future__ import annotations

from gateway.config import WorkerSettings


def pause_s(deaths: int, settings: WorkerSettings, spread: float) -> float:
    """Pause after so many deaths in a row: doubling up to the limit, less up to half of it, so that workers part."""
    longest = min(settings.restart_backoff_s * 2.0 ** min(deaths - 1, 32), settings.restart_backoff_max_s)
    return longest * (1 - spread / 2)
