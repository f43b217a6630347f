"""What the last turns of each session cost: cached, restored and computed tokens, and where the prompt parted.

In memory and bounded: the sessions used last, a few turns each. Refuses to know prompts and what a session holds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from backends.api import Usage

MOST_SESSIONS, MOST_TURNS = 4096, 8
Named = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Turn:
    """One answered call of a session; `at_s` is the time of day."""

    at_s: float
    prompt_tokens: int
    cached_tokens: int
    restored_tokens: int
    restored_from: str
    computed_tokens: int
    diverged: tuple[int, int] | None


@dataclass(slots=True)
class LastTurns:
    """By tenant and the session's id as the client gave it; the session unused for longest makes room."""

    _turns: OrderedDict[Named, deque[Turn]] = field(default_factory=OrderedDict)

    def note(self, tenant: str, session: str | None, usage: Usage | None, *, now: float) -> None:
        """Add a turn; a call without a session or without counts leaves none."""
        if session is None or usage is None or not usage.prompt_tokens:
            return
        turns = self._turns.setdefault((tenant, session), deque(maxlen=MOST_TURNS))
        turns.append(_turn(usage, now))
        self._turns.move_to_end((tenant, session))
        if len(self._turns) > MOST_SESSIONS:
            self._turns.popitem(last=False)

    def sessions(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's sessions that have turns here."""
        return [session for owner, session in self._turns if owner == tenant]

    def of(self, tenant: str, session: str) -> list[Turn]:
        """Return a session's turns, the last one last."""
        return list(self._turns.get((tenant, session), ()))

    def forget(self, tenant: str, session: str) -> None:
        """Drop what is known of a session that is erased."""
        self._turns.pop((tenant, session), None)


def _turn(usage: Usage, now: float) -> Turn:
    counts = (usage.prompt_tokens, usage.cached_tokens, usage.restored_tokens)
    return Turn(now, *counts, usage.restored_from, usage.computed_tokens, usage.diverged)
