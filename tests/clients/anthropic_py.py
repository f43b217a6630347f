"""The Anthropic SDK for Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anthropic

from tests.clients.openai_py import Colour
from tests.clients.reports import CITY, WEATHER, Feature, Report, Task

TOOL = {"name": "weather", "description": "Tells the weather", "input_schema": CITY}
FORCED = {"type": "tool", "name": "weather"}


@contextmanager
def connected(task: Task) -> Iterator[anthropic.Anthropic]:
    """Give a client with the settings that a newcomer has."""
    with anthropic.Anthropic(
        base_url=task.url, api_key="none", timeout=task.timeout_s, default_headers=dict(task.headers)
    ) as client:
        yield client


def asked(task: Task) -> dict[str, object]:
    """Give what both forms of a plain question send; the SDK itself no longer knows a temperature."""
    greedy = {"temperature": 0}
    return {"model": task.model, "messages": task.said(), "max_tokens": task.max_tokens, "extra_body": greedy}


def told(message: anthropic.types.Message) -> Report:
    """Read a message."""
    text = "".join(block.text for block in message.content if block.type == "text")
    return {"text": text, "finish": message.stop_reason, "prompt_tokens": prompt_tokens(message.usage)}


def prompt_tokens(usage: anthropic.types.Usage) -> int:
    """Add up a prompt's tokens, which Anthropic counts apart where they come from the cache."""
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


def whole(task: Task) -> Report:
    """Ask for an answer at once."""
    with connected(task) as client:
        return told(client.messages.create(**asked(task)))


def stream(task: Task) -> Report:
    """Ask for a stream and let the SDK put it together."""
    with connected(task) as client, client.messages.stream(**asked(task)) as events:
        return told(events.get_final_message())


def tool(task: Task) -> Report:
    """Force a call of a tool."""
    with connected(task) as client:
        return called(client.messages.create(**tool_question(task)))


def tool_stream(task: Task) -> Report:
    """Force a call of a tool and let the SDK put it together."""
    with connected(task) as client, client.messages.stream(**tool_question(task)) as events:
        return called(events.get_final_message())


def tool_question(task: Task) -> dict[str, object]:
    """Give what both forms of a question with a tool send."""
    return asked(task.about(WEATHER)) | {"tools": [TOOL], "tool_choice": FORCED, "max_tokens": 64}


def called(message: anthropic.types.Message) -> Report:
    """Read the one call among the blocks."""
    (block,) = [block for block in message.content if block.type == "tool_use"]
    return {"tool": {"id": block.id, "name": block.name, "arguments": block.input}}


def tool_result(task: Task) -> Report:
    """Go on after a tool's result."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
    turns = [
        *task.about(WEATHER).said(),
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    with connected(task) as client:
        return told(client.messages.create(**asked(task) | {"messages": turns, "tools": [TOOL]}))


def schema(task: Task) -> Report:
    """Have the answer parsed into a class."""
    with connected(task) as client:
        answer = client.messages.parse(**asked(task) | {"max_tokens": 48}, output_format=Colour)
    return {"parsed": answer.parsed_output.model_dump()}


def cancel(task: Task) -> Report:
    """Leave after the first words."""
    with connected(task) as client, client.messages.stream(**asked(task) | {"max_tokens": 4096}) as events:
        return {"text": next(iter(events.text_stream))}


def models(task: Task) -> Report:
    """List what can be called."""
    with connected(task) as client:
        return {"names": [model.id for model in client.models.list()]}


def count(task: Task) -> Report:
    """Count a prompt's tokens without an answer."""
    with connected(task) as client:
        counted = client.messages.count_tokens(model=task.model, messages=task.said())
    return {"prompt_tokens": counted.input_tokens}


FEATURES: dict[str, Feature] = {
    "whole": whole,
    "stream": stream,
    "tools": tool,
    "tools streamed": tool_stream,
    "tool results": tool_result,
    "schema": schema,
    "cancel": cancel,
    "models": models,
    "count": count,
}
