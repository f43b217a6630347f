"""The OpenAI SDK for Python, over responses."""

from __future__ import annotations

import json

from tests.clients.openai_py import Colour, connected
from tests.clients.reports import CITY, WEATHER, Feature, Report, Task

TOOL = {"type": "function", "name": "weather", "description": "Tells the weather", "parameters": CITY, "strict": True}
FORCED = {"type": "function", "name": "weather"}


def whole(task: Task) -> Report:
    """Ask for an answer at once."""
    with connected(task) as client:
        answer = client.responses.create(
            model=task.model, input=task.prompt, max_output_tokens=task.max_tokens, temperature=0
        )
    return {"text": answer.output_text, "finish": answer.status, "prompt_tokens": answer.usage.input_tokens}


def stream(task: Task) -> Report:
    """Ask for a stream of events; the last one carries the whole response."""
    report: Report = {"text": "", "finish": None}
    with connected(task) as client:
        for event in client.responses.create(
            model=task.model, input=task.prompt, max_output_tokens=task.max_tokens, temperature=0, stream=True
        ):
            if event.type == "response.output_text.delta":
                report["text"] += event.delta
            elif event.type in {"response.completed", "response.incomplete"}:
                report |= {"finish": event.response.status, "prompt_tokens": event.response.usage.input_tokens}
    return report


def tool(task: Task) -> Report:
    """Force a call of a tool."""
    with connected(task) as client:
        answer = client.responses.create(
            model=task.model, input=WEATHER, tools=[TOOL], tool_choice=FORCED, max_output_tokens=64
        )
    return {"tool": called(answer.output)}


def tool_stream(task: Task) -> Report:
    """Force a call of a tool and let the SDK put it together."""
    with (
        connected(task) as client,
        client.responses.stream(
            model=task.model, input=WEATHER, tools=[TOOL], tool_choice=FORCED, max_output_tokens=64
        ) as events,
    ):
        return {"tool": called(events.get_final_response().output)}


def called(output: list[object]) -> Report:
    """Read the one call among the items."""
    (item,) = [item for item in output if item.type == "function_call"]
    return {"id": item.call_id, "name": item.name, "arguments": json.loads(item.arguments)}


def tool_result(task: Task) -> Report:
    """Go on after a tool's result, by the id of the response that asked for it."""
    with connected(task) as client:
        first = client.responses.create(
            model=task.model, input=WEATHER, tools=[TOOL], tool_choice=FORCED, max_output_tokens=64
        )
        result = {"type": "function_call_output", "call_id": called(first.output)["id"], "output": "sunny"}
        answer = client.responses.create(
            model=task.model, input=[result], previous_response_id=first.id, max_output_tokens=16
        )
    return {"text": answer.output_text, "finish": answer.status}


def schema(task: Task) -> Report:
    """Have the answer parsed into a class."""
    with connected(task) as client:
        answer = client.responses.parse(model=task.model, input=task.prompt, text_format=Colour, max_output_tokens=48)
    return {"parsed": answer.output_parsed.model_dump()}


def cancel(task: Task) -> Report:
    """Leave after the first words."""
    with (
        connected(task) as client,
        client.responses.create(
            model=task.model, input=task.prompt, stream=True, extra_body={"ignore_eos": True}
        ) as events,
    ):
        return {"text": next(event.delta for event in events if event.type == "response.output_text.delta")}


FEATURES: dict[str, Feature] = {
    "whole": whole,
    "stream": stream,
    "tools": tool,
    "tools streamed": tool_stream,
    "tool results": tool_result,
    "schema": schema,
    "cancel": cancel,
}
