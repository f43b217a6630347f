"""How long to wait before something that died is started again. Refuses to know what died."""

from __future__ import annotations

from dataclasses import dataclass
from secrets import SystemRandom

from gateway.config import WorkerSettings


@dataclass(slots=True)
class Pauses:
    """The pauses of one process that is kept; a life longer than the longest pause counts as a fresh start."""

    settings: WorkerSettings
    deaths: int = 0

    def after(self, lived_s: float) -> float:
        """Count a death after so long a life; return how long to wait now."""
        self.deaths = 1 if lived_s > self.settings.restart_backoff_max_s else self.deaths + 1
        return pause_s(self.deaths, self.settings, SystemRandom().random())


def pause_s(deaths: int, settings: WorkerSettings, spread: float) -> float:
    """Pause after so many deaths in a row: doubling up to the limit, less up to half of it, so that workers part."""
    longest = min(settings.restart_backoff_s * 2.0 ** min(deaths - 1, 32), settings.restart_backoff_max_s)
    return longest * (1 - spread / 2)
