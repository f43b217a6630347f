"""LiteLLM, over chat completions."""

from __future__ import annotations

import json
import os

from tests.clients.openai_py import FORCED, TOOL, Colour
from tests.clients.reports import WEATHER, Feature, Report, Task

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it downloads prices, which fails for 20 s offline

import litellm

litellm.suppress_debug_info = True  # else it prints advice on every error


def asked(task: Task, **more: object) -> dict[str, object]:
    """Give what every question sends."""
    return {
        "model": f"openai/{task.model}",
        "messages": task.said(),
        "api_base": task.v1,
        "api_key": "none",
        "timeout": task.timeout_s,
        "extra_headers": dict(task.headers),
        "max_tokens": task.max_tokens,
        "temperature": 0,
        **more,
    }


def told(answer: litellm.ModelResponse) -> Report:
    """Read an answer."""
    (choice,) = answer.choices
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
    }


def whole(task: Task) -> Report:
    """Ask for an answer at once."""
    return told(litellm.completion(**asked(task)))


def stream(task: Task) -> Report:
    """Ask for a stream and its usage."""
    chunks = litellm.completion(**asked(task, stream=True, stream_options={"include_usage": True}))
    return told(litellm.stream_chunk_builder(list(chunks)))


def tool(task: Task) -> Report:
    """Force a call of a tool."""
    return called(litellm.completion(**asked(task.about(WEATHER), tools=[TOOL], tool_choice=FORCED, max_tokens=64)))


def tool_stream(task: Task) -> Report:
    """Force a call of a tool and put it together from its pieces."""
    more = {"tools": [TOOL], "tool_choice": FORCED, "max_tokens": 64, "stream": True}
    return called(litellm.stream_chunk_builder(list(litellm.completion(**asked(task.about(WEATHER), **more)))))


def called(answer: litellm.ModelResponse) -> Report:
    """Read the one call of an answer."""
    (call,) = answer.choices[0].message.tool_calls
    return {"tool": {"id": call.id, "name": call.function.name, "arguments": json.loads(call.function.arguments)}}


def tool_result(task: Task) -> Report:
    """Go on after a tool's result."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    turns = [
        *task.about(WEATHER).said(),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    return told(litellm.completion(**asked(task, messages=turns, tools=[TOOL])))


def schema(task: Task) -> Report:
    """Have the answer held to a class."""
    answer = litellm.completion(**asked(task, response_format=Colour, max_tokens=48))
    return {"parsed": json.loads(answer.choices[0].message.content)}


def cancel(task: Task) -> Report:
    """Leave after the first words."""
    chunks = litellm.completion(**asked(task, stream=True, max_tokens=4096))
    text = next(chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content)
    chunks.completion_stream.close()
    return {"text": text}


FEATURES: dict[str, Feature] = {
    "whole": whole,
    "stream": stream,
    "tools": tool,
    "tools streamed": tool_stream,
    "tool results": tool_result,
    "schema": schema,
    "cancel": cancel,
}
