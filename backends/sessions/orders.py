"""What the loop asks of the engine's thread, with an answer. Refuses to know what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from backends.engine import Engine
from backends.engine.thread import EngineThread

Answer = TypeVar("Answer")


class Orders:
    """Orders between two steps, from the loop."""

    def __init__(self, thread: EngineThread) -> None:
        self._thread = thread
        self._loop = asyncio.get_running_loop()

    def tell(self, work: Callable[[Engine], object]) -> None:
        """Have something done; any thread may call this."""
        self._thread.order("", lambda engine, _: _done(work(engine)))

    async def ask(self, work: Callable[[Engine], Answer], undo: Callable[[Engine, Answer], object]) -> Answer:
        """Have something done and wait for what it returns; who does not wait to the end has it undone."""
        answer: asyncio.Future[Answer] = self._loop.create_future()

        def tell(made: Answer) -> None:
            if answer.cancelled():
                self.tell(lambda engine: undo(engine, made))
            else:
                answer.set_result(made)

        def fail(exc: Exception) -> None:
            if not answer.cancelled():
                answer.set_exception(exc)

        def order(engine: Engine) -> None:
            try:
                made = work(engine)
            except Exception as exc:
                self._loop.call_soon_threadsafe(fail, exc)
                raise
            self._loop.call_soon_threadsafe(tell, made)

        self.tell(order)
        return await answer


def _done(_result: object) -> None:
    """Orders return nothing."""
