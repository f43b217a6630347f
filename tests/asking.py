"""One question in the words of each API, and what its answer says, for tests that hold the APIs against each other."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from backends.sse import Event, EventReader

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOL = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 8}}, "required": ["text"]}


@dataclass
class Answered:
    """What one answer says, whichever API it came in. `is_whole` is whether it ended as its API ends."""

    status: int = 200
    text: str = ""
    reasoning: str = ""
    tools: dict[str, str] = field(default_factory=dict)
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    is_whole: bool = False

    def add_tool(self, name: str, arguments: str) -> None:
        """Note a tool call, or a piece of one."""
        self.tools[name] = self.tools.get(name, "") + arguments


class Speech:
    """How one API asks and answers."""

    path: str
    finishes: dict[str, str]

    def body(self, text: str, features: dict[str, Any]) -> dict[str, Any]:
        """Write a question; of the features each API has its own spelling."""
        raise NotImplementedError

    def read(self, answer: Answered, body: dict[str, Any]) -> None:
        """Read a whole answer."""
        raise NotImplementedError

    def hear(self, answer: Answered, event: Event) -> None:
        """Read one event of a stream."""
        raise NotImplementedError


class OfChat(Speech):
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"

    def body(self, text: str, features: dict[str, Any]) -> dict[str, Any]:
        """Write a question."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if "tool" in features:
            body["tools"] = [{"type": "function", "function": {"name": "say", "parameters": TOOL}}]
            named = {"type": "function", "function": {"name": "say"}}
            body["tool_choice"] = named if features["tool"] == "named" else features["tool"]
        if "schema" in features:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        return body | _plain(features, stop="stop", most="max_tokens")

    def read(self, answer: Answered, body: dict[str, Any]) -> None:
        """Read a whole answer."""
        self._choices(answer, body, "message")
        answer.is_whole = True

    def hear(self, answer: Answered, event: Event) -> None:
        """Read a chunk."""
        if event.data == b"[DONE]":
            answer.is_whole = True
            return
        chunk = json.loads(event.data)
        answer.error = chunk.get("error", {}).get("message", "")
        self._choices(answer, chunk, "delta")

    def _choices(self, answer: Answered, body: dict[str, Any], key: str) -> None:
        for choice in body.get("choices", ()):
            said = choice.get(key, {})
            answer.text += said.get("content") or choice.get("text") or ""
            answer.reasoning += said.get("reasoning_content", "")
            answer.finish = choice["finish_reason"] or answer.finish
            for piece in said.get("tool_calls", ()):
                answer.add_tool("say", piece["function"]["arguments"])
        _count(answer, body.get("usage"), "prompt_tokens", "completion_tokens")


class OfCompletions(OfChat):
    """OpenAI's text completions."""

    path = "/v1/completions"

    def body(self, text: str, features: dict[str, Any]) -> dict[str, Any]:
        """Write a prompt."""
        return {"prompt": text} | _plain(features, stop="stop", most="max_tokens")


class OfMessages(Speech):
    """Anthropic's messages."""

    path = "/v1/messages"

    def body(self, text: str, features: dict[str, Any]) -> dict[str, Any]:
        """Write a question."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 99}
        if "tool" in features:
            body["tools"] = [{"name": "say", "input_schema": TOOL}]
            named = {"type": "tool", "name": "say"}
            kind = {"required": "any"}.get(features["tool"], features["tool"])
            body["tool_choice"] = named if kind == "named" else {"type": kind}
        if "schema" in features:
            body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
        if "think" in features:
            body["thinking"] = {"type": "adaptive"}
        return body | _plain(features, stop="stop_sequences", most="max_tokens")

    def read(self, answer: Answered, body: dict[str, Any]) -> None:
        """Read a message."""
        for block in body["content"]:
            answer.text += block.get("text", "")
            answer.reasoning += block.get("thinking", "")
            if block["type"] == "tool_use":
                answer.add_tool(block["name"], json.dumps(block["input"]))
        self._stopped(answer, body, body["usage"])
        answer.is_whole = True

    def hear(self, answer: Answered, event: Event) -> None:
        """Read an event."""
        body = json.loads(event.data)
        match body["type"]:
            case "content_block_delta":
                answer.text += body["delta"].get("text", "")
                answer.reasoning += body["delta"].get("thinking", "")
                if "partial_json" in body["delta"]:
                    answer.add_tool("say", body["delta"]["partial_json"])
            case "message_delta":
                self._stopped(answer, body["delta"], body["usage"])
            case "message_stop":
                answer.is_whole = True
            case "error":
                answer.error = body["error"]["message"]

    def _stopped(self, answer: Answered, body: dict[str, Any], usage: dict[str, int]) -> None:
        reasons = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
        answer.finish = reasons[body["stop_reason"]]
        _count(answer, usage, "input_tokens", "output_tokens")
        answer.prompt_tokens += usage["cache_read_input_tokens"]


class OfResponses(Speech):
    """OpenAI's responses."""

    path = "/v1/responses"

    def body(self, text: str, features: dict[str, Any]) -> dict[str, Any]:
        """Write a question; this API has no stop strings."""
        body: dict[str, Any] = {"input": text}
        if "tool" in features:
            body["tools"] = [{"type": "function", "name": "say", "parameters": TOOL}]
            named = {"type": "function", "name": "say"}
            body["tool_choice"] = named if features["tool"] == "named" else features["tool"]
        if "schema" in features:
            body["text"] = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}
        return body | _plain(features, stop="", most="max_output_tokens")

    def read(self, answer: Answered, body: dict[str, Any]) -> None:
        """Read a response."""
        for item in body["output"]:
            said = "".join(part["text"] for part in item.get("content", ()))
            if item["type"] == "reasoning":
                answer.reasoning += said
            else:
                answer.text += said
            if item["type"] == "function_call":
                answer.add_tool(item["name"], item["arguments"])
        cut = body["status"] == "incomplete"
        answer.finish = "length" if cut else "tool_calls" if answer.tools else "stop"
        _count(answer, body["usage"], "input_tokens", "output_tokens")
        answer.is_whole = body["status"] in {"completed", "incomplete"}

    def hear(self, answer: Answered, event: Event) -> None:
        """Read an event; the last one holds the whole response."""
        body = json.loads(event.data)
        match body["type"]:
            case "response.completed" | "response.incomplete":
                self.read(answer, body["response"])
            case "response.failed" | "error":
                answer.error = str(body)


SPEECHES: dict[str, Speech] = {
    "chat": OfChat(),
    "completions": OfCompletions(),
    "responses": OfResponses(),
    "messages": OfMessages(),
}


async def ask(url: str, dialect: str, model: str, text: str, **features: Any) -> Answered:
    """Ask in an API; give what its answer says."""
    speech = SPEECHES[dialect]
    body = speech.body(text, features) | {"model": model, "stream": features.get("stream", False)}
    if body["stream"] and isinstance(speech, OfChat):
        body["stream_options"] = {"include_usage": True}
    async with aiohttp.ClientSession() as http, http.post(url + speech.path, json=body) as response:
        answer = Answered(response.status)
        if response.status != 200:
            answer.error = (await response.json())["error"]["message"]
        elif body["stream"]:
            reader = EventReader(1 << 20)
            async for piece in response.content.iter_any():
                for event in reader.feed(piece):
                    speech.hear(answer, event)
        else:
            speech.read(answer, await response.json())
        return answer


def _plain(features: dict[str, Any], *, stop: str, most: str) -> dict[str, Any]:
    """Write the features that are mere fields."""
    names = {"stop": stop, "most": most, "temperature": "temperature"}
    return {names[name]: value for name, value in features.items() if name in names}


def _count(answer: Answered, usage: dict[str, int] | None, prompt: str, completion: str) -> None:
    if usage:
        answer.prompt_tokens, answer.completion_tokens = usage[prompt], usage[completion]
