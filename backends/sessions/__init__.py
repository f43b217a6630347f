"""The worker's half of sessions: restores prompts from the store before they are computed, saves answers behind them.

Refuses to know sockets to gateways and how calls are answered.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from backends.api import SessionCounts
from backends.engine import Engine, Prepared
from backends.engine.keeping import Kv
from backends.engine.planning import SessionSettings
from backends.engine.thread import EngineThread
from backends.engine.transcript import Transcript
from backends.peer import log
from backends.sessions.costs import Rates
from backends.sessions.diagnosis import Diagnosis
from backends.sessions.link import Link
from backends.sessions.orders import Orders
from backends.sessions.recheck import COMPARED, recheck
from backends.sessions.restorer import Restorer
from backends.sessions.saver import Saver
from backends.sessions.tally import Tally

PREFILL_TOKENS = 64  # a step of fewer tokens says little about how fast prompts are computed
SPARE_SHARE = 4  # below a quarter of blocks that can be taken without loss, saving does not wait
FLUSH_TIMEOUT_S = 20.0


class Sessions:
    """Sessions of one loaded model. Lives on the loop's thread, but for `diagnosed`."""

    def __init__(self, engine: Engine, kv: Kv, thread: EngineThread, settings: SessionSettings) -> None:
        self._loop = asyncio.get_running_loop()
        self._engine, self._diagnosis, self._rates = engine, Diagnosis(), Rates()
        self._recheck_every, self._tally = settings.recheck_every, Tally()
        self._orders = Orders(thread)
        link = Link(settings.store)
        self._restorer = Restorer(kv, link, self._orders, self._rates, self._tally, settings)
        self._saver = Saver(kv, link, self._orders, self._tally, settings)
        engine.keep = self._kept
        thread.stepped = self._stepped
        self._saving = asyncio.create_task(self._saver.run())
        self._saving.add_done_callback(_ended)

    @property
    def counts(self) -> SessionCounts:
        """All that was done."""
        return replace(self._tally.counts, waiting_saves=self._saver.waiting)

    def diagnosed(self, prepared: Prepared) -> Prepared:
        """Add where the prompt parts from its session's last one; from the thread that makes tokens."""
        if len(prepared.prompts) != 1:
            return prepared
        diverged = self._diagnosis.compare(prepared.call, prepared.prompts[0], self._engine.text)
        return replace(prepared, diverged=diverged)

    async def restored(self, prepared: Prepared) -> Prepared:
        """Bring what is stored of a call's prompt into blocks, where that pays."""
        self.watch()
        if len(prepared.prompts) != 1:
            return prepared
        restored = await self._restorer.restore(prepared.call.tenant, prepared.prompts[0])
        if restored.end > restored.start and self._is_rechecked():
            # After the call has its place in the line: it does not wait for this.
            self._loop.call_soon(self._recheck, prepared.prompts[0][: restored.end], restored.guarded)
        return replace(prepared, restored=restored)

    def watch(self) -> None:
        """Save early while few blocks can be taken without losing what is saved nowhere."""
        blocks = self._engine.blocks
        self._saver.press(is_pressed=self._engine.is_short or blocks.spare * SPARE_SHARE < blocks.total)

    async def flush(self) -> None:
        """Save all that waits to be saved, before the process ends; not for ever."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._saver.flush()
        except TimeoutError:
            log("session.flush_gave_up", waiting=self._saver.waiting)

    def _is_rechecked(self) -> bool:
        every = self._recheck_every
        return bool(every) and (self._tally.counts.restores - 1) % every == 0

    def _recheck(self, tokens: list[int], chain: tuple[bytes, ...]) -> None:
        def order(engine: Engine) -> None:
            if (differing := recheck(engine, tokens, chain)) is not None:
                self._loop.call_soon_threadsafe(self._rechecked, differing)

        self._orders.tell(order)

    def _rechecked(self, differing: int) -> None:
        self._tally.add(rechecks=1, recheck_tokens=COMPARED, recheck_disagreements=differing)
        if differing:
            log("session.recheck_differed", tokens=COMPARED, differing=differing)

    def _kept(self, transcript: Transcript) -> None:
        self._loop.call_soon_threadsafe(self._offer, transcript)

    def _offer(self, transcript: Transcript) -> None:
        self._saver.offer(transcript)
        self._restorer.roomy.set()
        self.watch()

    def _stepped(self, tokens: int, took_s: float) -> None:
        if tokens >= PREFILL_TOKENS:
            self._rates.prefill.learn(tokens, took_s)


def _ended(saving: asyncio.Task[None]) -> None:
    if not saving.cancelled() and (exc := saving.exception()) is not None:
        log("session.saver_failed", error=repr(exc))
