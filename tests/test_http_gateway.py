"""A gateway in front of other servers, from the client's bytes to the server's and back."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from openai import AsyncOpenAI

from gateway.app import Gateway
from gateway.settings import Release
from tests.upstreams import STREAM, chunk, gateway_of, scripted, status

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hi there"}]}


async def asked(gateway: Gateway, **fields: object) -> tuple[int, str, dict[str, str]]:
    """Post a chat call; give status, body and headers of the answer."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"http://{gateway.address}/v1/chat/completions", json=QUESTION | fields) as answer,
    ):
        return answer.status, await answer.text(), dict(answer.headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_another_tidegate_is_a_backend_like_any(tmp_path: Path, *, stream: bool) -> None:
    """A client of the front gateway gets what the one behind it says, with its counts."""
    async with (
        gateway_of(tmp_path / "back", Release(source="echo"), model="big") as back,
        gateway_of(tmp_path / "front", Release(url=f"http://{back.address}/v1", upstream_model="big")) as front,
        AsyncOpenAI(base_url=f"http://{front.address}/v1", api_key="none") as client,
    ):
        if stream:
            chunks = [
                each
                async for each in await client.chat.completions.create(
                    **QUESTION, stream=True, stream_options={"include_usage": True}
                )
            ]
            said, usage = "".join(c.delta.content or "" for each in chunks for c in each.choices), chunks[-1].usage
        else:
            answer = await client.chat.completions.create(**QUESTION)
            said, usage = answer.choices[0].message.content, answer.usage

    assert said == "hi there"
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 2)


async def test_unknown_fields_reach_a_server_of_the_same_api(tmp_path: Path) -> None:
    """What this gateway does not know the server may; callers' keys stay here."""
    async with (
        scripted(STREAM, chunk("x", "stop")) as upstream,
        gateway_of(tmp_path, Release(url=upstream.url, api_key="sk-ours")) as gateway,
    ):
        await asked(gateway, chat_template_kwargs={"thinking": False}, top_k=3)

    _, headers, body = upstream.asked[0]
    assert (body["chat_template_kwargs"], body["top_k"], body["messages"]) == (
        {"thinking": False},
        3,
        QUESTION["messages"],
    )
    assert headers["authorization"] == "Bearer sk-ours"


async def test_a_server_that_is_lost_in_an_answer_is_an_error_event(tmp_path: Path) -> None:
    """The client sees what came, then an error, and no end mark."""
    async with (
        scripted(STREAM, chunk("hello")) as upstream,
        gateway_of(tmp_path, Release(url=upstream.url)) as gateway,
    ):
        code, body, _ = await asked(gateway, stream=True)

    assert code == 200
    assert '"content":"hello"' in body
    assert '"error"' in body.splitlines()[-2]
    assert "[DONE]" not in body


async def test_a_server_that_is_down_is_told_at_once(tmp_path: Path) -> None:
    """Nobody waits for a server that does not answer, as they would for a worker that starts."""
    async with scripted() as upstream:
        url = upstream.url
    async with gateway_of(tmp_path, Release(url=url)) as gateway:
        code, body, headers = await asked(gateway)

    assert (code, headers["Retry-After"]) == (503, "1")
    assert "cannot be reached" in body


async def test_a_failure_before_the_first_word_is_tried_on_another_server(tmp_path: Path) -> None:
    """Two servers of one model stand in for each other."""
    async with (
        scripted(status(500, {})) as broken,
        scripted(STREAM, chunk("hello", "stop")) as sound,
        gateway_of(tmp_path, *(Release(name=s.url[-9:-3], url=s.url) for s in (broken, sound))) as gateway,
    ):
        answers = [await asked(gateway) for _ in range(4)]

    assert [code for code, _, _ in answers] == [200] * 4
    assert broken.asked


async def test_the_server_s_mistake_is_not_tried_again_on_itself(tmp_path: Path) -> None:
    """A server that fails is not asked twice for one call."""
    async with scripted(status(500, {})) as upstream, gateway_of(tmp_path, Release(url=upstream.url)) as gateway:
        code, _, headers = await asked(gateway)

    assert (code, headers["x-should-retry"]) == (502, "false")
    assert len(upstream.asked) == 1
