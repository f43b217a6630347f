"""The thread that owns the engine: loads it, obeys what others ask, and steps while there is something to do.

Refuses to know sockets and frames. What happens is told to a `Listener`, from this thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from backends.api import BackendError
from backends.engine import Engine, Event
from backends.engine.problems import CheckpointError

Order = Callable[[Engine, float], None]
SHORT_WAIT_S = 0.1  # how often who waits for blocks to be saved looks whether to wait on
FAILURES = 3  # failed steps in a row after which the process is started anew rather than trusted


class Listener(Protocol):
    """Who is told; its methods are called from the engine's thread and must not block."""

    def loaded(self, engine: Engine) -> None:
        """Say that the engine takes calls now."""
        ...

    def told(self, events: list[Event]) -> None:
        """Pass on what a step brought."""
        ...

    def failed(self, event: str, reason: str, *, is_final: bool) -> None:
        """Report a failure; after a final one this thread has ended."""
        ...


def _ignore(_tokens: int, _took_s: float) -> None:
    """Nobody measures the steps."""


class EngineThread(threading.Thread):
    """Runs until the process ends. An idle engine waits `window_s` for company before it computes a first call.

    `stepped` is told from this thread how many tokens a step computed, and in how many seconds.
    """

    def __init__(self, load: Callable[[], Engine], listener: Listener, *, window_s: float = 0.0) -> None:
        super().__init__(name="engine", daemon=True)
        self._load, self._listener, self._window_s = load, listener, window_s
        self._orders: deque[tuple[str, Order]] = deque()
        self._ordered = threading.Event()
        self._stepping_since: float | None = None
        self.stepped: Callable[[int, float], None] = _ignore

    def step_age_s(self, now: float) -> float:
        """Return how long the step that runs has been running, by `time.monotonic`; 0 between steps."""
        since = self._stepping_since
        return 0.0 if since is None else now - since

    def order(self, call_id: str, order: Order) -> None:
        """Have something done to the engine before its next step; its error becomes an event of the call."""
        self._orders.append((call_id, order))
        self._ordered.set()

    def run(self) -> None:
        """Load, then obey and step for ever."""
        try:
            engine = self._load()
        except CheckpointError as exc:
            self._listener.failed("worker.failed", str(exc), is_final=True)
            return
        except Exception as exc:  # noqa: BLE001 - the top of the thread: the process says why and ends
            self._listener.failed("worker.failed", repr(exc), is_final=True)
            return
        self._listener.loaded(engine)
        self._work(engine)

    def _work(self, engine: Engine) -> None:
        failures = 0
        while failures < FAILURES:
            if engine.is_idle:
                self._ordered.wait(SHORT_WAIT_S if engine.is_short else None)
                time.sleep(self._window_s)
            self._ordered.clear()
            events = self._obey(engine)
            self._stepping_since = time.monotonic()
            try:
                computed = engine.stats.computed_tokens
                events += engine.step(self._stepping_since)
                self.stepped(engine.stats.computed_tokens - computed, time.monotonic() - self._stepping_since)
                failures = 0
            except Exception as exc:  # noqa: BLE001 - the top of the thread: its calls fail, the next ones are tried
                failures += 1
                events += engine.fail_running(f"the model failed while computing: {exc!r}")
                self._listener.failed("worker.step_failed", repr(exc), is_final=failures == FAILURES)
            self._stepping_since = None
            if events:
                self._listener.told(events)

    def _obey(self, engine: Engine) -> list[Event]:
        refused: list[Event] = []
        for _ in range(len(self._orders)):
            call_id, order = self._orders.popleft()
            try:
                order(engine, time.monotonic())
            except BackendError as exc:
                refused.append((call_id, exc))
            except Exception as exc:  # noqa: BLE001 - the top of the thread: only the call whose order this was fails
                refused.append((call_id, BackendError("broken", f"the engine could not take the call: {exc!r}")))
                self._listener.failed("worker.order_failed", repr(exc), is_final=False)
        return refused
