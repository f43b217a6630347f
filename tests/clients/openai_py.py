"""The OpenAI SDK for Python, over chat completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import openai
from pydantic import BaseModel

from tests.clients.reports import CITY, WEATHER, Feature, Report, Task

TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells the weather", "parameters": CITY}}
FORCED = {"type": "function", "function": {"name": "weather"}}


class Colour(BaseModel):
    """What structured output is parsed into."""

    name: Literal["red", "green"]
    level: int


@contextmanager
def connected(task: Task) -> Iterator[openai.OpenAI]:
    """Give a client with the settings that a newcomer has."""
    with openai.OpenAI(
        base_url=task.v1, api_key="none", timeout=task.timeout_s, default_headers=dict(task.headers)
    ) as client:
        yield client


def whole(task: Task) -> Report:
    """Ask for an answer at once."""
    with connected(task) as client:
        answer = client.chat.completions.create(
            model=task.model, messages=task.said(), max_tokens=task.max_tokens, temperature=0
        )
    (choice,) = answer.choices
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
    }


def stream(task: Task) -> Report:
    """Ask for a stream and its usage."""
    report: Report = {"text": "", "finish": None}
    with connected(task) as client:
        for chunk in client.chat.completions.create(
            model=task.model,
            messages=task.said(),
            max_tokens=task.max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        ):
            if chunk.usage:
                report["prompt_tokens"] = chunk.usage.prompt_tokens
            for choice in chunk.choices:
                report["text"] += choice.delta.content or ""
                report["finish"] = choice.finish_reason or report["finish"]
    return report


def tool(task: Task) -> Report:
    """Force a call of a tool."""
    with connected(task) as client:
        answer = client.chat.completions.create(
            model=task.model, messages=task.about(WEATHER).said(), tools=[TOOL], tool_choice=FORCED, max_tokens=64
        )
    (call,) = answer.choices[0].message.tool_calls
    return {"tool": {"id": call.id, "name": call.function.name, "arguments": json.loads(call.function.arguments)}}


def tool_stream(task: Task) -> Report:
    """Force a call of a tool and put it together from its pieces, as the SDK's own accumulator does."""
    with (
        connected(task) as client,
        client.chat.completions.stream(
            model=task.model, messages=task.about(WEATHER).said(), tools=[TOOL], tool_choice=FORCED, max_tokens=64
        ) as events,
    ):
        (choice,) = events.get_final_completion().choices
    (call,) = choice.message.tool_calls
    return {"tool": {"id": call.id, "name": call.function.name, "arguments": json.loads(call.function.arguments)}}


def tool_result(task: Task) -> Report:
    """Go on after a tool's result."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    turns = [
        *task.about(WEATHER).said(),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    with connected(task) as client:
        answer = client.chat.completions.create(model=task.model, messages=turns, tools=[TOOL], max_tokens=8)
    return {"text": answer.choices[0].message.content, "finish": answer.choices[0].finish_reason}


def schema(task: Task) -> Report:
    """Have the answer parsed into a class."""
    with connected(task) as client:
        answer = client.chat.completions.parse(
            model=task.model, messages=task.said(), response_format=Colour, max_tokens=48
        )
    return {"parsed": answer.choices[0].message.parsed.model_dump()}


def cancel(task: Task) -> Report:
    """Leave after the first words."""
    with (
        connected(task) as client,
        client.chat.completions.create(
            model=task.model, messages=task.said(), stream=True, extra_body={"ignore_eos": True}
        ) as chunks,
    ):
        return {"text": next(chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content)}


def models(task: Task) -> Report:
    """List what can be called."""
    with connected(task) as client:
        return {"names": [model.id for model in client.models.list()]}


FEATURES: dict[str, Feature] = {
    "whole": whole,
    "stream": stream,
    "tools": tool,
    "tools streamed": tool_stream,
    "tool results": tool_result,
    "schema": schema,
    "cancel": cancel,
    "models": models,
}
