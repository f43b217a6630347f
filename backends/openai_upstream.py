"""Calls as OpenAI's chat completions and completions, for a server that speaks them.

A call that came in the same API is passed on as it was sent, with the few fields changed that must be; any other is
written from what was understood of it. Refuses to know how answers look; `openai_chunks` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from backends.api import Call, Message, Sampling, Tool
from backends.lenient import Json, child, numbers
from backends.openai_chunks import Chunks
from backends.upstream import Post, UpstreamAnswer

_UNCHANGED = Sampling()


class OpenAIUpstream:
    """vLLM, SGLang, llama.cpp, Ollama, OpenAI, another Tidegate."""

    def post(self, call: Call, model: str) -> Post:
        """Write a call; usage is always asked for, and every answer is streamed so that it can be cancelled."""
        path = "/completions" if call.prompts else "/chat/completions"
        came_so = call.dialect == ("completions" if call.prompts else "chat")
        body = dict(call.body) if came_so else _written(call)
        options = child(body, "stream_options")
        return Post(
            path, {**body, "model": model, "stream": True, "stream_options": {**options, "include_usage": True}}
        )

    def tokenize(self, call: Call, model: str) -> Post:
        """Ask in vLLM's words; another Tidegate knows them too."""
        if call.prompts:
            return Post("/tokenize", {"model": model, "prompt": call.prompts[0]}, is_at_root=True)
        written = _written(call)
        asked = {name: value for name, value in written.items() if name in {"messages", "tools"}}
        return Post("/tokenize", {**asked, "model": model}, is_at_root=True)

    def tokens(self, body: Json) -> Sequence[int]:
        """Read the tokens."""
        return numbers(body, "tokens")

    def detokenize(self, token_ids: Sequence[int], model: str) -> Post:
        """Ask in vLLM's words."""
        return Post("/detokenize", {"model": model, "tokens": list(token_ids)}, is_at_root=True)

    def embed(self, call: Call, model: str) -> Post:
        """Ask for plain numbers, which every server knows to write."""
        body = dict(call.body) if call.dialect == "embeddings" else {"input": list(call.prompts)}
        return Post("/embeddings", {**body, "model": model, "encoding_format": "float"})

    def headers(self, api_key: str) -> Mapping[str, str]:
        """Sign by a bearer token."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def answer(self, call: Call) -> UpstreamAnswer:
        """Prepare to read chunks."""
        return Chunks(call)


def _written(call: Call) -> dict[str, object]:
    """Write a call that came in another API; what is at its default is left to the server."""
    body: dict[str, object] = _sampling(call.sampling)
    if call.prompts:
        body["prompt"] = list(call.prompts)
    else:
        body["messages"] = [_message(message) for message in call.messages]
    if call.max_tokens is not None:
        body["max_tokens"] = call.max_tokens
    optional: dict[str, object] = {
        "min_tokens": call.min_tokens,
        "ignore_eos": call.ignore_eos,
        "stop": list(call.stop),
        "n": call.choices if call.choices > 1 else 0,
        "tools": [_tool(tool) for tool in call.tools],
        "response_format": _format(call),
    }
    body |= {name: value for name, value in optional.items() if value}
    return body | _logprobs(call) | _tool_choice(call)


def _sampling(sampling: Sampling) -> dict[str, object]:
    changed: dict[str, object] = {
        each.name: getattr(sampling, each.name)
        for each in fields(Sampling)
        if getattr(sampling, each.name) != getattr(_UNCHANGED, each.name)
    }
    if sampling.logit_bias:
        changed["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return changed


def _message(message: Message) -> dict[str, object]:
    written: dict[str, object] = {"role": message.role, "content": message.text}
    if message.name is not None:
        written["name"] = message.name
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        written["content"] = message.text or None
        written["tool_calls"] = [
            {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": each.arguments}}
            for each in message.tool_calls
        ]
    return written


def _tool(tool: Tool) -> dict[str, object]:
    strict = {"strict": True} if tool.strict else {}
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters, **strict}
    return {"type": "function", "function": function}


def _tool_choice(call: Call) -> dict[str, object]:
    if not call.tools:
        return {}
    parallel: dict[str, object] = {} if call.parallel_tool_calls else {"parallel_tool_calls": False}
    choice = call.tool_choice
    if choice.name is not None:
        return parallel | {"tool_choice": {"type": "function", "function": {"name": choice.name}}}
    return parallel | ({"tool_choice": choice.mode} if choice.mode != "auto" else {})


def _format(call: Call) -> object:
    """Return the answer's format; what other APIs can ask for are objects and schemas."""
    asked = call.response_format
    if asked.kind == "json_schema":
        schema = {"name": "answer", "schema": asked.schema, "strict": asked.strict}
        return {"type": "json_schema", "json_schema": schema}
    return {"type": asked.kind} if asked.kind == "json_object" else None


def _logprobs(call: Call) -> dict[str, object]:
    if call.logprobs is None:
        return {}
    return {"logprobs": call.logprobs} if call.prompts else {"logprobs": True, "top_logprobs": call.logprobs}
