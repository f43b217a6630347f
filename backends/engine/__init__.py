"""The engine: calls in, one step after the other, deltas out. Used from one thread, but for `warm` and `prepare`.

Refuses to know processes, sockets, clocks and what computes a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from secrets import randbits

import numpy as np
from numpy.typing import NDArray

from backends.api import BackendError, Call, Delta, Sampling
from backends.engine.answer import NOTHING, Answer, Answering, Restored, Tokenizer
from backends.engine.forms import Forms, parser_for, thoughts_in
from backends.engine.grammar import Mask
from backends.engine.keeping import Kv
from backends.engine.layout import batch_of
from backends.engine.patience import Patience
from backends.engine.problems import TemplateError
from backends.engine.runner import Runner
from backends.engine.sampler import Choice, Rules, Sampler
from backends.engine.transcript import Transcript, transcript_of
from backends.stops import StopText
from batching.blocks import Blocks, root_key
from batching.drafts import MOST_ROWS, Drafter
from batching.lending import Lending
from batching.scheduler import Limits, Plan, Scheduler, Sequence

Event = tuple[str, Delta | BackendError]
Chosen = tuple[Answer, list[Choice], int]  # the tokens sampled for an answer, and how many were guessed


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call whose prompts are tokens and fit the context, with what binds its answers; each takes a copy of `mask`.

    `restored` and `diverged` are what its usage will say of where its prompt's KV came from.
    """

    call: Call
    prompts: list[list[int]]
    mask: Mask | None = None
    restored: Restored = NOTHING
    diverged: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """Load and totals since start, as of the last step."""

    running: int = 0
    waiting: int = 0
    held: int = 0
    slots: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    kv_blocks_known: int = 0
    steps: int = 0
    computed_tokens: int = 0
    sampled_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """What a step says about the next tokens: the likeliest of each row, and all logits where a row wants them."""

    best: list[int]
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def choose(self, row: int, draft: tuple[int, ...], answer: Answer) -> list[Choice]:
        """Choose the next tokens of an answer: one, and one more for each guess that was right, until it ends."""
        choices = [self._choose(row, answer, 0)]
        for at, guess in enumerate(draft, 1):
            if choices[-1].token != guess or choices[-1].ends:
                break
            choices.append(self._choose(row + at, answer, at))
        return choices

    def _choose(self, row: int, answer: Answer, ahead: int) -> Choice:
        if self.best[row] < 0:
            raise ArithmeticError("the model computed no finite logits")
        if answer.sampler is None:
            return Choice(self.best[row])
        return answer.sampler.choose(self.logits[row], len(answer.sequence.tokens) + ahead)


class Engine:
    """One model replica: who computes what is the scheduler's, how is the runner's, what it says is the tokenizer's."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, limits: Limits, *, context_tokens: int) -> None:
        self._runner, self._tokenizer, self._limits = runner, tokenizer, limits
        self.context_tokens = context_tokens
        self._forms = Forms(tokenizer)
        self.blocks = Blocks(runner.kv_blocks, runner.block_tokens)
        self.lending = Lending(self.blocks)
        self.keep: Callable[[Transcript], None] | None = None
        self.kv: Kv | None = None
        self._scheduler = Scheduler(self.blocks, limits)
        self._calls: dict[str, Answering] = {}
        self._answers: dict[Sequence, Answer] = {}
        self._arrivals = 0
        self._pace: deque[float] = deque(maxlen=64)
        self._is_stalled = False  # nobody in line found blocks in the last step
        self._patience = Patience()
        self.stats = Stats(slots=limits.max_batch, kv_blocks_total=runner.kv_blocks)

    @property
    def runner(self) -> Runner:
        """What computes the steps."""
        return self._runner

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing until something is submitted, resumed or given back."""
        return self._scheduler.is_idle or (self._is_stalled and (self.lending.is_lent or self._scheduler.is_short))

    @property
    def is_short(self) -> bool:
        """Whether a newcomer waits for others' blocks to be saved; another thread may ask."""
        return self._scheduler.is_short

    @property
    def unanswered(self) -> int:
        """How many calls are not finished."""
        return len(self._calls)

    def warm(self) -> None:
        """Read the vocabulary for the first call that needs a grammar; another thread may do this."""
        self._forms.warm()

    def prepare(self, call: Call) -> Prepared:
        """Turn a call's prompts into tokens, its forms into a mask, and check both.

        It can take a while, so another thread may do this.
        """
        prompts = self.tokens(call)
        for prompt in prompts:
            self._check(call, prompt)
        return Prepared(call, prompts, self._forms.mask(call))

    def tokens(self, call: Call) -> list[list[int]]:
        """Return the tokens of each of a call's prompts, however long; any thread may ask."""
        try:
            return self._tokenizer.prompt(call)
        except TemplateError as exc:
            raise BackendError("rejected", str(exc), code="invalid_messages", param="messages") from exc

    def text(self, token_ids: list[int]) -> str:
        """Return the text of tokens, special ones spelled out; any thread may ask."""
        self._check_ids(token_ids, "tokens")
        return b"".join(map(self._tokenizer.token_bytes, token_ids)).decode(errors="replace")

    def submit(self, prepared: Prepared, now: float) -> None:
        """Let a call stand in line; BackendError when the line is full."""
        call = prepared.call
        if call.id in self._calls:
            self._let_go(prepared.restored)
            raise BackendError("rejected", f"a call with the id {call.id} is already running", code="duplicate_id")
        if self._scheduler.is_full:
            self._let_go(prepared.restored)
            raise self._overloaded(now)
        answering = self._calls[call.id] = Answering(
            call,
            sum(map(len, prepared.prompts)),
            unfinished=call.sequences,
            restored=prepared.restored,
            diverged=prepared.diverged,
        )
        for prompt in prepared.prompts:
            self._join(answering, prompt, prepared.mask)

    def cancel(self, call_id: str) -> None:
        """Forget a call and free its blocks; one that has ended is fine."""
        if (answering := self._calls.pop(call_id, None)) is not None:
            for answer in answering.answers:
                self._end(answer)

    def hold(self, call_id: str) -> None:
        """Compute nothing for a call until `resume`; one that has ended is fine."""
        for answer in self._unfinished(call_id):
            self._scheduler.hold(answer.sequence)

    def resume(self, call_id: str) -> None:
        """Go on with a call that was on hold."""
        for answer in reversed(self._unfinished(call_id)):
            self._scheduler.resume(answer.sequence)

    def step(self, now: float) -> list[Event]:
        """Compute one step; return what it brought for which call."""
        self._scheduler.is_patient = self.keep is not None and self._patience.lasts(self.lending.progress, now)
        plan = self._scheduler.plan(self._drafts())
        self._patience.note(now, is_short=self._scheduler.is_short)
        self._is_stalled = not plan.chunks
        scores = self._compute(plan)
        chosen, failed = self._choose(plan, scores)
        self._scheduler.advance(plan, {a.sequence: [choice.token for choice in choices] for a, choices, _ in chosen})
        told = self._take(chosen, now)
        self._count(plan, chosen)
        return failed + told

    def fail_running(self, message: str) -> list[Event]:
        """After a step that raised: end every call that was part of it, and trust no block's content any more."""
        running = {answer.answering.call.id for sequence, answer in self._answers.items() if sequence.table}
        for call_id in running:
            self.cancel(call_id)
        self.blocks.forget_all()
        self._count(Plan([], []), [])
        return [(call_id, BackendError("broken", message)) for call_id in running]

    def _drafts(self) -> dict[Sequence, list[int]]:
        """Guess ahead for who decodes, unless so many do that it cannot pay."""
        rows, most = self._scheduler.active, self._limits.max_draft
        if not most or rows > MOST_ROWS:
            return {}
        decoding = [sequence for sequence in self._scheduler.running if sequence.is_decoding]
        drafts = {sequence: self._answers[sequence].draft(rows=rows, most=most) for sequence in decoding}
        return {sequence: draft for sequence, draft in drafts.items() if draft}

    def _compute(self, plan: Plan) -> Scores:
        for source, target in plan.copies:
            self._runner.copy_block(source, target)
        if not plan.chunks:
            return Scores([])
        batch = batch_of(plan.chunks)
        if all(self._answers[chunk.sequence].sampler is None for chunk in plan.chunks):
            return Scores(self._runner.greedy(batch).tolist())
        best = np.empty(len(batch.sampled), np.int32)
        logits = self._runner.forward(batch, best)
        return Scores(best.tolist(), logits)

    def _choose(self, plan: Plan, scores: Scores) -> tuple[list[Chosen], list[Event]]:
        """Sample the next tokens; a call whose row cannot be sampled ends with an error, and only that call."""
        chosen: list[Chosen] = []
        failed: list[Event] = []
        next_row = 0
        for chunk in plan.chunks:
            if not chunk.is_last:
                continue
            row, next_row = next_row, next_row + 1 + len(chunk.draft)
            if (answer := self._answers.get(chunk.sequence)) is None:
                continue  # another answer of the same call failed in this step
            try:
                chosen.append((answer, scores.choose(row, chunk.draft, answer), len(chunk.draft)))
            except Exception as exc:  # noqa: BLE001 - whatever a call's own settings cause ends that call alone
                failed.append(self._fail(answer, f"no token could be chosen for this call: {exc}"))
        ended = {call_id for call_id, _ in failed}
        return [one for one in chosen if not ended or one[0].answering.call.id not in ended], failed

    def _take(self, chosen: list[Chosen], now: float) -> list[Event]:
        told: list[Event] = []
        for answer, choices, drafted in chosen:
            if drafted and answer.drafter is not None:
                answer.drafter.learn(drafted, len(choices) - 1)
            for choice in choices:
                deltas = answer.take(choice)
                told += [(answer.answering.call.id, delta) for delta in deltas]
                if deltas and deltas[-1].finish is not None:
                    self._finish(answer, now)
                    break
        return told

    def _finish(self, answer: Answer, now: float) -> None:
        self._end(answer)
        self._pace.append(now)
        if not answer.answering.unfinished:
            del self._calls[answer.answering.call.id]

    def _fail(self, answer: Answer, message: str) -> Event:
        """End a call whose blocks may hold nonsense."""
        for other in answer.answering.answers:
            self.blocks.forget(other.sequence.table)
        self.cancel(answer.answering.call.id)
        return answer.answering.call.id, BackendError("broken", message)

    def _end(self, answer: Answer) -> None:
        """Free an answer's blocks; what they hold is kept for the session where sessions are on."""
        self._let_go(answer.answering.restored)
        if self.keep is not None and (transcript := transcript_of(answer, self.blocks)) is not None:
            self.lending.guard(transcript.chain, is_guarded=True)
            self.keep(transcript)
        self._scheduler.leave(answer.sequence)
        self._answers.pop(answer.sequence, None)

    def _let_go(self, restored: Restored) -> None:
        """Guard no longer what was restored for a call that has ended."""
        if restored.guarded:
            self.lending.guard(restored.guarded, is_guarded=False)

    def _unfinished(self, call_id: str) -> list[Answer]:
        answering = self._calls.get(call_id)
        return [a for a in answering.answers if a.sequence in self._answers] if answering else []

    def _check(self, call: Call, prompt: list[int]) -> None:
        param = "prompt" if call.prompts else "messages"
        if not prompt:
            raise BackendError("rejected", "the prompt is empty; send at least one token", param=param)
        self._check_ids(prompt, param)
        if len(prompt) >= self.context_tokens:
            raise BackendError(
                "rejected",
                f"the prompt has {len(prompt)} tokens, but the model's context is {self.context_tokens} tokens, "
                "at least one of them for the answer; shorten the prompt",
                code="context_length_exceeded",
                param=param,
            )

    def _check_ids(self, token_ids: list[int], param: str) -> None:
        vocabulary = self._runner.spec.vocabulary
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocabulary:
            raise BackendError("rejected", f"token ids go from 0 to {vocabulary - 1} in this model", param=param)

    def _overloaded(self, now: float) -> BackendError:
        waiting = len(self._scheduler.waiting)
        wait_s = seconds_until_place(waiting, self._pace, now)
        message = f"{waiting} answers wait for a place already; try again in {wait_s:.1f} s"
        return BackendError("overloaded", message, retryable=True, code="overloaded", retry_after_s=wait_s)

    def _join(self, answering: Answering, prompt: list[int], mask: Mask | None) -> None:
        """Let the sequences of one prompt stand in line; the first computes it for all."""
        call, leader, root = answering.call, None, root_key(answering.call.tenant)
        for choice in range(call.choices):
            sequence = Sequence(list(prompt), self._arrivals, leader, root)
            leader = leader or sequence
            self._arrivals += 1
            answer = self._answer(answering, sequence, choice, mask and mask.copy())
            answering.answers.append(answer)
            self._answers[sequence] = answer
            self._scheduler.join(sequence)

    def _answer(self, answering: Answering, sequence: Sequence, choice: int, mask: Mask | None) -> Answer:
        call, room = answering.call, self.context_tokens - sequence.prompt_tokens
        return Answer(
            answering=answering,
            index=len(answering.answers),
            sequence=sequence,
            limit=room if call.max_tokens is None else min(room, call.max_tokens),
            sampler=sampler_for(call, choice, sequence.tokens, self._tokenizer.eos_ids, mask),
            mask=mask,
            tokenizer=self._tokenizer,
            text=self._tokenizer.detokenizer(),
            stops=StopText(call.stop),
            calls=parser_for(call, len(answering.answers)),
            drafter=Drafter() if self._limits.max_draft else None,
            thoughts=thoughts_in(call, sequence.tokens, self._tokenizer),
        )

    def _count(self, plan: Plan, chosen: list[Chosen]) -> None:
        """Publish the load; another thread reads `stats`."""
        scheduler, before = self._scheduler, self.stats
        self.stats = replace(
            before,
            running=scheduler.active,
            waiting=len(scheduler.waiting),
            held=len(scheduler.running) - scheduler.active + len(scheduler.parked),
            kv_blocks_used=self.blocks.used,
            kv_blocks_known=self.blocks.known,
            steps=before.steps + bool(plan.chunks),
            computed_tokens=before.computed_tokens + sum(chunk.count for chunk in plan.chunks),
            sampled_tokens=before.sampled_tokens + sum(len(choices) for _, choices, _ in chosen),
            drafted_tokens=before.drafted_tokens + sum(drafted for _, _, drafted in chosen),
            accepted_tokens=before.accepted_tokens + sum(len(choices) - 1 for _, choices, _ in chosen),
            preemptions=scheduler.preemptions,
        )


def sampler_for(
    call: Call, choice: int, prompt: list[int], eos_ids: Collection[int], mask: Mask | None
) -> Sampler | None:
    """Make the sampler of a call's i-th choice; None when the most likely token is always the one.

    A grammar decides by itself when an answer may end: holding it open could leave no token at all.
    """
    min_tokens = 0 if mask is not None else call.min_tokens
    if is_plain(call.sampling) and call.logprobs is None and not min_tokens and mask is None:
        return None
    seed = randbits(63) if call.sampling.seed is None else call.sampling.seed + choice
    return Sampler(call.sampling, prompt, Rules(seed, eos_ids, min_tokens, call.logprobs, mask))


def is_plain(sampling: Sampling) -> bool:
    """Whether sampling is greedy over the logits as they are."""
    penalties = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
    return sampling.temperature == 0.0 and not penalties and not sampling.logit_bias


def seconds_until_place(waiting: int, finished: deque[float], now: float) -> float:
    """How long a newcomer would wait at the pace at which answers finished lately; a second when that is not known."""
    if len(finished) < 2 or now <= finished[0]:
        return 1.0
    return (waiting + 1) * (now - finished[0]) / len(finished)
