"""Blocks lent to restores and saves: nothing leaks, nothing half filled is found, and no answer ever changes."""

from __future__ import annotations

from random import Random

from backends.engine import Engine
from batching.blocks import Blocks, chain_of, root_key
from batching.lending import Lending, Loan
from tests.test_schedules import random_call
from tests.toy_model import Heard, ToyRunner, ToyTokenizer, answer, finish, start, toy_call, toy_engine

SIZE, UNIT = 4, 8
TOKENS = list(range(40))


def chain(tokens: list[int]) -> list[bytes]:
    """Name the blocks of a tenant's tokens."""
    return chain_of(root_key("anonymous"), tokens, SIZE)


def lent(lending: Lending, tokens: list[int], spare: int = 0) -> Loan | None:
    """Borrow blocks for all whole units of some tokens."""
    return lending.lend(chain(tokens), unit=UNIT, spare=spare, worth=lambda _start: True)


def test_what_was_filled_is_found_and_the_rest_is_not() -> None:
    """A restore that broke off keeps the beginning that arrived."""
    blocks = Blocks(16, SIZE)
    lending = Lending(blocks)
    loan = lent(lending, TOKENS)
    assert loan is not None

    found_before = lending.known_tokens(chain(TOKENS))
    lending.settle(loan, 16)

    assert (found_before, lending.known_tokens(chain(TOKENS))) == (0, 16)
    assert (blocks.used, lending.is_lent) == (0, False)


def test_a_loan_takes_only_what_is_left_beside_the_spare() -> None:
    """In whole units, and none where there is no room for one."""
    blocks = Blocks(8, SIZE)
    lending = Lending(blocks)

    loan = lent(lending, TOKENS, spare=3)
    second = lent(lending, [1, *TOKENS], spare=3)

    assert loan is not None
    assert (loan.start, loan.end, second, blocks.free) == (0, 16, None, 4)


def test_guarded_blocks_are_taken_last() -> None:
    """What is saved nowhere outlives what is, though it is older."""
    blocks = Blocks(8, SIZE)
    lending = Lending(blocks)
    for tokens in (old := TOKENS[:16], new := TOKENS[16:32]):
        loan = lent(lending, tokens)
        assert loan is not None
        lending.settle(loan, 16)
    lending.guard(chain(new), is_guarded=False)

    taken = [blocks.take() for _ in range(4)]

    assert (lending.known_tokens(chain(old)), lending.known_tokens(chain(new)), blocks.spare) == (16, 0, 0)
    blocks.release(taken)
    lending.guard(chain(old), is_guarded=False)
    assert (blocks.spare, blocks.free) == (8, 8)


def test_a_loan_takes_nothing_that_is_guarded() -> None:
    """A restore never costs what is saved nowhere; there is room again once it was let go."""
    blocks = Blocks(8, SIZE)
    lending = Lending(blocks)
    loan = lent(lending, TOKENS[:24])
    assert loan is not None
    lending.settle(loan, 24)

    has_room = lending.has_room(chain(TOKENS[24:40]), spare=0)
    part = lent(lending, TOKENS[24:40])
    lending.guard(chain(TOKENS[:24]), is_guarded=False)

    assert part is not None
    assert (has_room, part.end, lending.known_tokens(chain(TOKENS[:24]))) == (False, 8, 24)
    assert lending.has_room(chain(TOKENS[24:40]), spare=0)


class Borrower:
    """Restores prompts as a worker would: borrows, writes tokens into the toy's cache, settles at any time."""

    def __init__(self, engine: Engine, runner: ToyRunner, random: Random) -> None:
        self._engine, self._runner, self._random = engine, runner, random
        self._loans: list[tuple[Loan, list[int]]] = []
        self.filled = 0

    def borrow(self, tokens: list[int]) -> None:
        """Begin a restore."""
        loan = lent(self._engine.lending, tokens, spare=self._random.randint(0, 4))
        if loan is not None:
            self._loans.append((loan, tokens))

    def settle(self) -> None:
        """End a restore that has come anywhere between nothing and all."""
        if not self._loans:
            return
        loan, tokens = self._loans.pop(self._random.randrange(len(self._loans)))
        filled = self._random.randrange(0, loan.end - loan.start + 1, UNIT)
        for at in range(loan.start, loan.start + filled):
            self._runner.write(loan.blocks[(at - loan.start) // SIZE], at % SIZE, tokens[at])
        self._engine.lending.settle(loan, filled)
        self.filled += filled

    def settle_all(self) -> None:
        """End all."""
        while self._loans:
            self.settle()


def check(seed: int) -> int:
    """Let calls and restores of their prompts interleave; compare every answer with the one given alone."""
    random = Random(seed)
    engine = toy_engine(kv_blocks=random.randint(12, 30), max_batch=random.randint(1, 4))
    runner = engine.runner
    assert isinstance(runner, ToyRunner)
    borrower, heard = Borrower(engine, runner, random), Heard()
    calls = [random_call(random, number) for number in range(random.randint(1, 5))]
    coming = list(calls)
    while coming or not engine.is_idle:
        match random.randint(0, 5):
            case 0 | 1 if coming:
                start(engine, coming.pop())
            case 2:
                borrower.borrow(ToyTokenizer().prompt(random.choice(calls))[0])
            case 3:
                borrower.settle()
            case 4:
                engine.lending.guard(chain(ToyTokenizer().prompt(calls[0])[0]), is_guarded=random.random() < 0.5)
        heard.add(engine.step(0.0))
        assert engine.blocks.used + engine.blocks.free == engine.blocks.total
    borrower.settle_all()
    finish(engine, heard)

    assert (engine.blocks.free, engine.lending.is_lent) == (engine.blocks.total, False), f"schedule {seed} leaks"
    for call in calls:
        alone = answer(call)
        for index in range(call.choices):
            assert heard.text(call.id, index) == alone.text(call.id, index), f"schedule {seed}, {call.id}"
    return borrower.filled


def test_restores_beside_steps_never_change_an_answer() -> None:
    """100 schedules leak nothing and answer as if nothing was restored; much was."""
    assert sum(check(seed) for seed in range(100)) > 500


def test_a_line_that_waits_for_lent_blocks_is_idle_until_they_come_back() -> None:
    """Steps that could do nothing are not made again and again."""
    engine = toy_engine(kv_blocks=8)
    loan = lent(engine.lending, TOKENS[:24])
    assert loan is not None
    start(engine, toy_call("a prompt of several blocks", max_tokens=1))

    engine.step(0.0)
    was_idle = engine.is_idle
    engine.lending.settle(loan, 0)

    assert (was_idle, engine.is_idle) == (True, False)
    assert finish(engine).text("call")
