"""When to leave a tier that fails alone for a while. Pure: the caller brings the time, of a clock that never jumps.

Refuses to know tiers and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

FAILURES, REST_S = 3, 5.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures` in a row; from the third on the tier is asked once every `REST_S` until it answers."""

    failures: int = 0
    rests_until_s: float = 0.0

    def allows(self, now_s: float) -> bool:
        """Whether the tier may be asked now."""
        return self.failures < FAILURES or now_s >= self.rests_until_s

    def failed(self, now_s: float) -> Breaker:
        """Count a failure."""
        return Breaker(self.failures + 1, now_s + REST_S)

    def worked(self) -> Breaker:
        """Forget the failures."""
        return self if self.failures == 0 else Breaker()
