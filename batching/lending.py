"""Blocks lent to those who restore and save KV beside the steps, and given back whatever becomes of them.

A restore takes blank and idle blocks only, and none that is guarded: no running sequence loses one for it, nothing
unsaved is lost for it, and for everybody who runs a block is left. What it was lent cannot be found before it is
settled, and then only as far as it was filled.

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
        self.progress = 0  # how often held or guarded blocks were let go: whether saving gets on

    @property
    def is_lent(self) -> bool:
        """Whether a loan is open: blocks may come back without a step."""
        return bool(self._loans)

    def known_tokens(self, chain: Sequence[bytes]) -> int:
        """How many tokens of a chain of full blocks need no restoring."""
        return len(self._blocks.find(chain)) * self._blocks.block_tokens

    def has_room(self, chain: Sequence[bytes], *, spare: int) -> bool:
        """Whether all that is not known of a chain can be lent now."""
        known = self._blocks.find(chain)
        return len(chain) - len(known) + self._blocks.spare_among(known) + spare <= self._blocks.spare

    def lend(self, chain: Sequence[bytes], *, unit: int, spare: int, worth: Callable[[int], bool]) -> Loan | None:
        """Take blocks for what is not known of a chain, in whole units of tokens; None where there is nothing to do.

        `spare` blocks stay free; `worth(start)` says whether restoring from a token on pays. Lends less than all where
        room is short.
        """
        per_unit = unit // self._blocks.block_tokens
        known = self._blocks.find(chain)
        first, last = len(known) // per_unit, len(chain) // per_unit
        held = known[: first * per_unit]
        room = self._blocks.spare - self._blocks.spare_among(held) - spare
        last = min(last, first + max(0, room) // per_unit)
        if first >= last or not worth(first * unit):
            return None
        self._blocks.hold(held)
        taken = [self._blocks.take() for _ in range((last - first) * per_unit)]
        loan = Loan(first * unit, last * unit, held, taken, list(chain[first * per_unit : last * per_unit]))
        self._loans.add(loan)
        return loan

    def settle(self, loan: Loan, filled: int) -> None:
        """Let the first `filled` tokens of a loan be found, and give all of it back; again is fine.

        What was filled is guarded: whoever it was filled for stands in line, and lets it go in the end.
        """
        if loan not in self._loans:
            return
        self._loans.discard(loan)
        count = filled // self._blocks.block_tokens
        for block, key in islice(zip(loan.blocks, loan.keys, strict=True), count):
            self._blocks.publish(block, key)
        if count:
            self._blocks.guard([*loan.known, *loan.blocks[:count]], is_guarded=True)
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
        self.progress += 1
        self._blocks.release(ids)

    def guard(self, chain: Sequence[bytes], *, is_guarded: bool) -> None:
        """Have what is left of a chain taken after all other blocks, or no longer so."""
        self.progress += not is_guarded
        self._blocks.guard(self._blocks.left_of(chain), is_guarded=is_guarded)
