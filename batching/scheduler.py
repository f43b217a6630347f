"""Continuous batching: which sequences compute which of their tokens in the next step.

The rules, in order:
1. Running sequences come by age. Each that decodes gets its one token before any prompt gets a chunk; prompts share
   what is left of the token budget, the oldest first.
2. When no block is left, a sequence that is on hold loses its blocks, else the youngest does; it stands at the front
   of the line again and is computed anew (its full blocks often are still known). The oldest never loses, so all end.
3. The line moves strictly in order while there are places, budget and blocks for the whole of the next sequence.
   Guarded blocks do not count while the line `is_patient`: newcomers rather wait than have unsaved content lost.
4. The last token of a prompt is always computed, since its logits are wanted. When its block is known, it is copied.
5. In a step without prompts, guesses (`batching/drafts.py`) take what budget and blocks nobody else wants.

Refuses to know tensors, text and what a call is. Pure: reads no clock, waits for nothing.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field

from batching.blocks import ROOT_KEY, Blocks, extend_chain
from batching.queue import Queue


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one step and of the line before it; `max_draft` is the most guesses a sequence computes in a step."""

    max_batch: int
    token_budget: int
    max_waiting: int
    max_draft: int = 16


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens on their way through the model: `tokens[:computed]` have their KV in the blocks of `table`.

    A sequence with a `leader` has the same prompt, and lets the leader compute it first, to share its blocks.
    Blocks are shared only among sequences of the same `root`, the key before their first token.
    """

    tokens: list[int]
    arrival: int
    leader: Sequence | None = None
    root: bytes = ROOT_KEY
    prompt_tokens: int = field(init=False)
    computed: int = 0
    cached: int | None = None
    table: array[int] = field(default_factory=lambda: array("i"))
    chain: list[bytes] = field(default_factory=list)
    published: int = 0
    is_held: bool = False
    is_done: bool = False

    def __post_init__(self) -> None:
        """Remember where the prompt ends."""
        self.prompt_tokens = len(self.tokens)

    @property
    def is_decoding(self) -> bool:
        """Whether all its tokens but the last are computed."""
        return self.computed + 1 == len(self.tokens) and not self.is_held

    @property
    def is_leading(self) -> bool:
        """Whether its prompt is being computed for the first time."""
        return bool(self.table) and not self.is_done and len(self.tokens) == self.prompt_tokens


@dataclass(slots=True)  # not frozen: that takes three times as long to make, once a token
class Chunk:
    """`count` tokens of a sequence from `start` on; `is_last` when the next token can be sampled after it.

    The last of them are the guesses in `draft`, if there are any: the next token can be sampled before each as well.
    """

    sequence: Sequence
    start: int
    count: int
    is_last: bool
    draft: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: first these blocks are copied (source, target) in order, then these chunks computed together."""

    chunks: list[Chunk]
    copies: list[tuple[int, int]]


class Scheduler:
    """The running sequences, those in line, and those on hold without blocks (`parked`).

    `is_short` tells after a plan that the next in line waits for nothing but guarded blocks.
    """

    def __init__(self, blocks: Blocks, limits: Limits) -> None:
        self.blocks, self.limits = blocks, limits
        self.waiting: Queue[Sequence] = Queue(limits.max_waiting)
        self.running: list[Sequence] = []
        self.parked: set[Sequence] = set()
        self.preemptions = 0
        self.is_patient = False
        self.is_short = False

    @property
    def is_full(self) -> bool:
        """Whether a newcomer is to be refused."""
        places = self.limits.max_batch - self.active - len(self.parked)
        return self.waiting.is_full(places=places)

    @property
    def active(self) -> int:
        """Sequences with blocks that are not on hold."""
        return sum(not sequence.is_held for sequence in self.running)

    @property
    def is_idle(self) -> bool:
        """Whether a plan would be empty however often it is made."""
        return not len(self.waiting) and not self.active

    def join(self, sequence: Sequence) -> None:
        """Stand in line. Ask `is_full` first."""
        self.waiting.join(sequence)

    def leave(self, sequence: Sequence) -> None:
        """End a sequence, finished or not, and free its blocks; one that has left before is fine."""
        sequence.is_done = True
        self.parked.discard(sequence)
        self.waiting.leave(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        self._free(sequence)

    def hold(self, sequence: Sequence) -> None:
        """Compute nothing for a sequence until `resume`: its place is free, its blocks are when others need them."""
        sequence.is_held = True
        if sequence in self.waiting:
            self.waiting.leave(sequence)
            self.parked.add(sequence)

    def resume(self, sequence: Sequence) -> None:
        """Go on with a sequence that was on hold."""
        sequence.is_held = False
        if sequence in self.parked:
            self.parked.discard(sequence)
            self.waiting.rejoin(sequence)

    def plan(self, drafts: Mapping[Sequence, list[int]] | None = None) -> Plan:
        """Decide the next step. Every planned block is taken when this returns; `advance` must follow."""
        plan = Plan([], [])
        self.is_short = False
        places, budget = self._plan_running(plan)
        if places > 0 and budget > 0:
            self._admit(plan, places, budget)
        if drafts and all(chunk.count == 1 for chunk in plan.chunks):
            self._add_drafts(plan, drafts)
        return plan

    def advance(self, plan: Plan, sampled: Mapping[Sequence, list[int]]) -> None:
        """Note that the planned step was computed and which tokens came of it; let its full blocks be found.

        `sampled` holds the guesses that were right and the token after them, one at least for each last chunk.
        """
        size = self.blocks.block_tokens
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.is_done:
                continue
            sequence.computed = chunk.start + chunk.count - len(chunk.draft)
            if chunk.is_last:
                sequence.computed += len(sampled[sequence]) - 1
                sequence.tokens += sampled[sequence]
            if sequence.computed // size > sequence.published:
                self._publish(sequence)

    def _plan_running(self, plan: Plan) -> tuple[int, int]:
        """Plan for who has a place, by age; return the places and the budget that are left."""
        active = [s for s in self.running if not s.is_held][: self.limits.max_batch]
        decodes = sum(s.computed + 1 == len(s.tokens) for s in active)
        budget, for_prompts = self.limits.token_budget, max(0, self.limits.token_budget - decodes)
        size = self.blocks.block_tokens
        for sequence in active:
            pending = len(sequence.tokens) - sequence.computed
            count = min(pending, budget if pending == 1 else for_prompts)
            has_room = sequence.computed + count <= len(sequence.table) * size
            if count and sequence.table and (has_room or self._make_room(sequence, count)):
                self._add(plan, sequence, count)
                budget -= count
                for_prompts -= count if pending > 1 else 0
        return self.limits.max_batch - self.active, min(for_prompts, budget)

    def _add_drafts(self, plan: Plan, drafts: Mapping[Sequence, list[int]]) -> None:
        """Compute guesses too, but leave a free block for everybody who runs: no guess ever costs one its place."""
        budget = self.limits.token_budget - len(plan.chunks)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            draft = drafts.get(sequence, [])[: max(0, budget)]
            while draft and self._missing(sequence, 1 + len(draft)) > max(0, self.blocks.free - len(self.running)):
                draft.pop()
            if draft:
                self._make_room(sequence, 1 + len(draft))
                chunk.draft, chunk.count = tuple(draft), 1 + len(draft)
                budget -= len(draft)

    def _admit(self, plan: Plan, places: int, budget: int) -> None:
        """Give places to those in line, in order, until one does not fit."""
        while places > 0 and budget > 0 and (sequence := self.waiting.first()) is not None:
            if sequence.leader is not None and sequence.leader.is_leading:
                break
            if (ids := self._fit(sequence)) is None:
                break
            self._adopt(sequence, ids, plan)
            count = min(len(sequence.tokens) - sequence.computed, budget)
            self._make_room(sequence, count)
            self._add(plan, sequence, count)
            places, budget = places - 1, budget - count

    def _fit(self, sequence: Sequence) -> list[int] | None:
        """Find a known prefix beside which all of the sequence fits, and a block more for each who runs."""
        self._extend_chain(sequence)
        while True:
            ids = self.blocks.find(sequence.chain)
            fresh = self.blocks.count_for(len(sequence.tokens)) - len(ids) + self._is_whole(sequence, ids)
            fits = fresh + self.blocks.idle_among(ids) + len(self.running) <= self.blocks.free
            self.is_short = fits and self.is_patient and self._spoils(fresh, ids)
            if fits and not self.is_short:
                return ids
            if not self._strip_one(only_held=True):
                return None

    def _spoils(self, fresh: int, ids: list[int]) -> bool:
        """Whether taking so many blocks beside those of a known prefix takes guarded ones."""
        return fresh + self.blocks.spare_among(ids) + len(self.running) > self.blocks.spare

    def _is_whole(self, sequence: Sequence, ids: list[int]) -> bool:
        return len(ids) * self.blocks.block_tokens == len(sequence.tokens)

    def _adopt(self, sequence: Sequence, ids: list[int], plan: Plan) -> None:
        """Give a place to a sequence, and the blocks of its known prefix."""
        self.waiting.leave(sequence)
        insort(self.running, sequence, key=lambda s: s.arrival)
        self.blocks.hold(ids)
        sequence.table, sequence.published = array("i", ids), len(ids)
        sequence.computed = len(ids) * self.blocks.block_tokens
        if self._is_whole(sequence, ids):
            self._copy_last(sequence, plan)
        if sequence.cached is None:
            sequence.cached = sequence.computed

    def _copy_last(self, sequence: Sequence, plan: Plan) -> None:
        """Leave the last token to be computed, in a copy of the block that others know."""
        source, target = sequence.table[-1], self.blocks.take()
        plan.copies.append((source, target))
        sequence.table[-1] = target
        self.blocks.release([source])
        sequence.published -= 1
        sequence.computed -= 1

    def _add(self, plan: Plan, sequence: Sequence, count: int) -> None:
        end = sequence.computed + count
        plan.chunks.append(Chunk(sequence, sequence.computed, count, end == len(sequence.tokens)))

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Take the blocks for a chunk, if need be from the youngest; False when that is the sequence itself."""
        missing = self._missing(sequence, count)
        while missing > self.blocks.free:
            self._strip_one(only_held=False)
            if not sequence.table:
                return False
        sequence.table.extend([self.blocks.take() for _ in range(missing)])
        return True

    def _missing(self, sequence: Sequence, count: int) -> int:
        return self.blocks.count_for(sequence.computed + count) - len(sequence.table)

    def _strip_one(self, *, only_held: bool) -> bool:
        """Take place and blocks from the youngest on hold, else from the youngest; False when there is none."""
        held = [s for s in self.running if s.is_held]
        victims = held if held or only_held else self.running
        if not victims:
            return False
        self._preempt(victims[-1])
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self.preemptions += 1
        if sequence.is_held:
            self.parked.add(sequence)
        else:
            self.waiting.rejoin(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.table)
        sequence.table, sequence.computed, sequence.published = array("i"), 0, 0

    def _publish(self, sequence: Sequence) -> None:
        """Let the blocks be found that the last step filled."""
        full = sequence.computed // self.blocks.block_tokens
        self._extend_chain(sequence)
        for index in range(sequence.published, full):
            self.blocks.publish(sequence.table[index], sequence.chain[index])
        sequence.published = full

    def _extend_chain(self, sequence: Sequence) -> None:
        """Name the full blocks of the tokens that have come since."""
        extend_chain(sequence.chain, sequence.root, sequence.tokens, self.blocks.block_tokens)
