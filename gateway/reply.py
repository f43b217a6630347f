"""The answer to one call on its way to the client: streamed or whole, complete or broken off with a reason.

Refuses to know where deltas come from. Nothing but pings is sent before the first delta that says something, so that
until then the call may be tried elsewhere; a broken answer never ends like a whole one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from backends.api import BackendError, Call, Delta, Usage
from gateway.cachenote import cache_headers
from gateway.dialects import Answer, Endpoint
from gateway.exchange import Exchange, id_headers, respond
from gateway.metrics import Metrics
from gateway.record import Record
from gateway.refusal import Refusal

_LAST_WORDS_S = 5.0
_JSON = {"content-type": "application/json"}
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx in front would hold events back
}


class Reply:
    """One exchange's answer; `try_for` begins an attempt, `refuse` says no at any time.

    `has_begun` says whether anything of the answer itself was sent; the head may have left before, with a ping.
    """

    def __init__(self, endpoint: Endpoint, exchange: Exchange, record: Record, metrics: Metrics) -> None:
        self._endpoint, self._exchange, self._record, self._metrics = endpoint, exchange, record, metrics
        self._answer: Answer  # set by try_for()
        self._is_streamed = False
        self._deltas: list[Delta] = []
        self._unfinished: set[int] = set()
        self._opening = asyncio.Lock()
        self._is_open = self._is_ending = False
        self._writes = 0
        self.has_begun = False

    @asynccontextmanager
    async def pinging(self, ping: bytes, *, every_s: float) -> AsyncIterator[None]:
        """Say in every silence while the block runs that the stream goes on, as a long prefill looks like death.

        Most calls are answered before the first silence: they pay for a timer, not for a task.
        """
        pingers: set[asyncio.Task[None]] = set()
        begin = partial(self._begin_pinging, pingers, ping, every_s)
        timer = asyncio.get_running_loop().call_later(every_s, begin)
        try:
            yield
        finally:
            timer.cancel()
            for pinger in pingers:
                pinger.cancel()
                await asyncio.wait({pinger})

    def try_for(self, call: Call, answer: Answer) -> None:
        """Begin, or begin again: forget an attempt that failed before anything was sent."""
        self._answer = answer
        self._is_streamed = call.stream
        self._deltas = []
        self._unfinished = set(range(call.sequences))

    async def add(self, delta: Delta) -> None:
        """Send one delta, or keep it for a whole answer."""
        self._record.saw(delta, time.perf_counter(), self._metrics)
        if delta.finish:
            self._unfinished.discard(delta.index)
        if not self._is_streamed:
            self._deltas.append(delta)
        elif self.has_begun:
            await self._write(self._answer.chunk(delta))
        elif delta.says_something:
            await self._begin(delta)

    async def finish(self) -> None:
        """End a complete answer; BackendError if a sequence of it never finished."""
        if self._unfinished:
            raise BackendError("broken", "the answer ended before it was complete")
        if not self._is_streamed:
            await self.tell(self._answer.whole(self._deltas))
            return
        self._record.status = 200
        self._is_ending = True  # a ping after the end would be taken for the beginning of the next answer
        await self._exchange.write(self._answer.end(self._record.usage))
        await self._exchange.end()

    async def tell(self, body: bytes, usage: Usage | None = None) -> None:
        """Give a whole answer."""
        self._record.usage = usage or self._record.usage
        self._record.status = 200
        await respond(self._exchange, 200, _JSON | self._head(), body)

    async def refuse(self, refusal: Refusal) -> None:
        """Say no: with a status before the first byte, with an error event after it."""
        self._record.status, self._record.code = refusal.status, refusal.code
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await (self._break_off(refusal) if self._is_open else self._decline(refusal))
        except (TimeoutError, ConnectionResetError):
            return  # the client doesn't read or has gone; the exchange breaks off, as it was not ended

    async def _begin(self, delta: Delta) -> None:
        self.has_begun = True
        await self._open()
        await self._write(self._answer.begin(self._record.usage) + self._answer.chunk(delta))

    async def _write(self, said: bytes) -> None:
        """Send a piece of the answer; a delta may say nothing in its dialect, which is silence too."""
        if said:
            self._writes += 1
            await self._exchange.write(said)

    async def _open(self) -> None:
        """Send the head of a stream, once; who comes second waits until it has left."""
        async with self._opening:
            if not self._is_open:
                self._is_open = True
                await self._exchange.start(200, _STREAM_HEADERS | self._head())

    def _head(self) -> dict[str, str]:
        """Return the headers that are this call's own; a head that leaves with a ping has no counts yet."""
        return id_headers(self._record.request_id) | cache_headers(self._record.usage)

    def _begin_pinging(self, pingers: set[asyncio.Task[None]], ping: bytes, every_s: float) -> None:
        pingers.add(asyncio.create_task(self._ping(ping, every_s)))

    async def _ping(self, ping: bytes, every_s: float) -> None:
        seen = 0
        with suppress(ConnectionResetError):  # the client has gone, and the exchange's own task hears of it
            while not self._is_ending:
                if seen == (seen := self._writes):
                    await self._open()
                    await self._exchange.write(ping)
                await asyncio.sleep(every_s)

    async def _break_off(self, refusal: Refusal) -> None:
        await self._exchange.write(self._answer.error(refusal, self._record.request_id))
        await self._exchange.end()

    async def _decline(self, refusal: Refusal) -> None:
        status, body = self._endpoint.error(refusal, self._record.request_id)
        await respond(self._exchange, status, _JSON | id_headers(self._record.request_id) | refusal.headers, body)
