"""Blocks lent to those who restore and save KV beside the steps, and given back whatever becomes of them.

A restore takes blank and idle blocks only: no running sequence loses one for it, and for everybody who runs a block is
left. What it was lent cannot be found before it is settled, and then only as far as it was filled.

Refuses to know bytes, stores and time. Used between steps, as `Blocks` is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from batching.blocks import Blocks


@dataclass(slots=True, eq=False)
class Loan:
    """Blocks for the tokens from `start` to `end`; those of `known` lie before and are only held.

    `blocks` are writable by the borrower alone until the loan is settled.
    """

    start: int
    end: int
    known: list[int]
    blocks: list[int]
    keys: list[bytes] = field(repr=False)


class Lending:
    """What is lent out of `blocks`."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._loans: set[Loan] = set()

    @property
    def is_lent(self) -> bool:
        """Whether a loan is open: blocks may come back without a step."""
        return bool(self._loans)

    def known_tokens(self, chain: Sequence[bytes]) -> int:
        """How many tokens of a chain of full blocks need no restoring."""
        return len(self._blocks.find(chain)) * self._blocks.block_tokens

    def lend(self, chain: Sequence[bytes], *, unit: int, spare: int, worth: Callable[[int], bool]) -> Loan | None:
        """Take blocks for what is not known of a chain, in whole units of tokens; None where there is nothing to do.

        `spare` blocks stay free; `worth(start)` says whether restoring from a token on pays.
        """
        per_unit = unit // self._blocks.block_tokens
        known = self._blocks.find(chain)
        first, last = len(known) // per_unit, len(chain) // per_unit
        held = known[: first * per_unit]
        room = self._blocks.free - self._blocks.idle_among(held) - spare
        last = min(last, first + max(0, room) // per_unit)
        if first >= last or not worth(first * unit):
            return None
        self._blocks.hold(held)
        taken = [self._blocks.take() for _ in range((last - first) * per_unit)]
        loan = Loan(first * unit, last * unit, held, taken, list(chain[first * per_unit : last * per_unit]))
        self._loans.add(loan)
        return loan

    def settle(self, loan: Loan, filled: int) -> None:
        """Let the first `filled` tokens of a loan be found, and give all of it back; again is fine."""
        if loan not in self._loans:
            return
        self._loans.discard(loan)
        count = filled // self._blocks.block_tokens
        for block, key in islice(zip(loan.blocks, loan.keys, strict=True), count):
            self._blocks.publish(block, key)
        self._blocks.release([*loan.known, *loan.blocks])

    def hold(self, keys: Sequence[bytes]) -> list[int] | None:
        """Hold the known blocks of these keys, to be read; None when one of them is gone."""
        found = self._blocks.find(keys)
        if len(found) < len(keys):
            return None
        self._blocks.hold(found)
        return found

    def release(self, ids: Sequence[int]) -> None:
        """Give back what `hold` returned."""
        self._blocks.release(ids)

    def guard(self, chain: Sequence[bytes], *, is_guarded: bool) -> None:
        """Have what is left of a chain taken after all other blocks, or no longer so."""
        self._blocks.guard(self._blocks.left_of(chain), is_guarded=is_guarded)
