"""LangChain's ChatOpenAI."""

from __future__ import annotations

from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from tests.clients.openai_py import TOOL, Colour
from tests.clients.reports import WEATHER, Feature, Report, Task


def chat(task: Task, **settings: object) -> ChatOpenAI:
    """Give the model as `tidegate connect langchain` prints it, with what the task asks for."""
    return ChatOpenAI(
        model=task.model,
        base_url=task.v1,
        api_key="none",
        timeout=task.timeout_s,
        default_headers=dict(task.headers),
        **({"temperature": 0, "max_tokens": task.max_tokens} | settings),
    )


def told(message: AIMessage) -> Report:
    """Read a message."""
    return {
        "text": message.text,
        "finish": message.response_metadata.get("finish_reason"),
        "prompt_tokens": (message.usage_metadata or {}).get("input_tokens"),
    }


def joined(pieces: list[AIMessageChunk]) -> AIMessageChunk:
    """Put a streamed message together, as LangChain means it to be done."""
    first, *others = pieces
    return sum(others, first)


def whole(task: Task) -> Report:
    """Ask for an answer at once."""
    return told(chat(task).invoke(task.prompt))


def stream(task: Task) -> Report:
    """Ask for a stream and its usage."""
    return told(joined(list(chat(task, stream_usage=True).stream(task.prompt))))


def tool(task: Task) -> Report:
    """Force a call of a tool."""
    return called(chat(task, max_tokens=64).bind_tools([TOOL], tool_choice="weather").invoke(WEATHER))


def tool_stream(task: Task) -> Report:
    """Force a call of a tool and put it together from its pieces."""
    return called(joined(list(chat(task, max_tokens=64).bind_tools([TOOL], tool_choice="weather").stream(WEATHER))))


def called(message: AIMessage) -> Report:
    """Read the one call of a message."""
    (call,) = message.tool_calls
    return {"tool": {"id": call["id"], "name": call["name"], "arguments": call["args"]}}


def tool_result(task: Task) -> Report:
    """Go on after a tool's result."""
    call = {"id": "call_1", "name": "weather", "args": {"city": "Paris"}}
    turns = [HumanMessage(WEATHER), AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id="call_1")]
    return told(chat(task).bind_tools([TOOL]).invoke(turns))


def schema(task: Task) -> Report:
    """Have the answer parsed into a class."""
    asked = chat(task, max_tokens=48).with_structured_output(Colour, method="json_schema")
    return {"parsed": asked.invoke(task.prompt).model_dump()}


def cancel(task: Task) -> Report:
    """Leave after the first words."""
    pieces = chat(task, max_tokens=4096).stream(task.prompt)
    text = next(piece.text for piece in pieces if piece.text)
    pieces.close()
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
