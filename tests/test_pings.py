"""Streams that are silent say that they go on: in each dialect, also before the first token, and binding nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anthropic
import openai
import pytest

from backends.api import BackendError
from gateway.dialects import Dialect
from gateway.dialects.anthropic import Messages
from gateway.dialects.openai import Chat
from gateway.dialects.responses import Responses
from gateway.dialects.stored import MemoryResponses
from tests.paths import HELLO, Bench, Line, Paper, Scripted, chat, unreachable
from tests.replay import replayed


async def silent_until_pinged(dialect: Dialect, body: bytes, *lines: Line) -> Paper:
    """Ask for a stream whose backend says its lines only after the client was pinged."""
    pinged = asyncio.Event()
    bench = Bench(Scripted(pinged, *lines), ping_interval_s=0.001)
    exchange = Paper(body, on_write=lambda _: pinged.set())
    await bench.path.handle(dialect, exchange)
    return exchange


STREAMED: list[tuple[Dialect, dict[str, object]]] = [
    (Chat(), {}),
    (Responses(MemoryResponses()), {"input": "hi"}),
    (Messages(), {"max_tokens": 9}),
]


@pytest.mark.parametrize(("dialect", "fields"), STREAMED)
async def test_a_silent_stream_says_that_it_goes_on(dialect: Dialect, fields: dict[str, object]) -> None:
    """While nothing comes the client is pinged, first of all, in its own dialect; then the answer comes whole."""
    answer = await silent_until_pinged(dialect, chat(stream=True, **fields), *HELLO)

    assert answer.written.startswith(dialect.ping)
    assert b"hel" in answer.written
    assert answer.is_ended


async def test_after_a_ping_a_refusal_is_an_error_event() -> None:
    """Once the head has left, what would have been a status is told in the stream, which never looks whole."""
    overloaded = BackendError("overloaded", "full", retryable=True)
    answer = await silent_until_pinged(Messages(), chat(stream=True, max_tokens=9), overloaded)

    assert (answer.status, answer.is_ended) == (200, True)
    assert b"overloaded_error" in answer.written
    assert b"message_stop" not in answer.written


async def test_a_ping_binds_no_call_to_its_replica() -> None:
    """After pings alone the call is still tried elsewhere."""
    pinged = asyncio.Event()
    bench = Bench(Scripted(pinged, unreachable()), Scripted(*HELLO), ping_interval_s=0.001)
    answer = Paper(chat(stream=True), on_write=lambda _: pinged.set())
    await bench.path.handle(Chat(), answer)

    assert answer.written.endswith(b"data: [DONE]\n\n")


class Slow(Paper):
    """An exchange whose client takes its time to read the end; notes whether anything is sent after it."""

    is_ending = False
    was_disturbed = False

    async def write(self, chunk: bytes) -> None:
        """Note a piece that comes too late."""
        self.was_disturbed |= self.is_ending
        await super().write(chunk)

    async def end(self) -> None:
        """Wait as long as many pings would take."""
        self.is_ending = True
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await asyncio.Event().wait()
        await super().end()


async def test_nothing_follows_the_end() -> None:
    """While a slow client reads the end no ping is sent after it: that would be taken for the next answer."""
    answer = Slow(chat(stream=True))
    await Bench(Scripted(*HELLO), ping_interval_s=0.001).path.handle(Chat(), answer)

    assert answer.is_ended
    assert not answer.was_disturbed


async def test_pings_end_with_the_client() -> None:
    """A client that goes away while it is pinged leaves no task behind, and its call ends as 499."""
    was_pinged = asyncio.Event()

    def gone(_: bytes) -> None:
        was_pinged.set()
        raise ConnectionResetError

    bench = Bench(Scripted(asyncio.Event()), ping_interval_s=0.001)
    asking = asyncio.create_task(bench.path.handle(Chat(), Paper(chat(stream=True), on_write=gone)))
    await was_pinged.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert bench.count("tidegate_requests_total", model="unknown", tenant="anonymous", status="499") is None
    assert bench.count("tidegate_requests_total", model="m", tenant="anonymous", status="499") == 1


async def test_the_sdks_pass_over_pings() -> None:
    """However many pings come first, OpenAI's and Anthropic's own clients hear what follows."""
    said = [await silent_until_pinged(dialect, chat(stream=True, **fields), *HELLO) for dialect, fields in STREAMED]
    async with replayed([said[0].written]) as url, openai.AsyncOpenAI(base_url=url, api_key="-") as sdk:
        chunks = [chunk async for chunk in await sdk.chat.completions.create(model="m", messages=[], stream=True)]
    async with (
        replayed([said[1].written]) as url,
        openai.AsyncOpenAI(base_url=url, api_key="-") as sdk,
        sdk.responses.stream(model="m", input="hi") as stream,
    ):
        response = await stream.get_final_response()
    async with (
        replayed([said[2].written]) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="-") as sdk,
        sdk.messages.stream(model="m", max_tokens=9, messages=[]) as stream,
    ):
        message = await stream.get_final_message()

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello"
    assert (response.output_text, message.content[0].text) == ("hello", "hello")
