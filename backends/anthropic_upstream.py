"""Calls as Anthropic's messages, for a server that speaks them.

A call that came in the same API is passed on as it was sent, with the few fields changed that must be; any other is
written from what was understood of it, or refused where this API has no words for it. A seed is a wish and left out.
Refuses to know how answers look; `anthropic_events` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import orjson

from backends.anthropic_events import Events
from backends.api import OWN_SIGNATURE, Call, Message, Tool, ToolCall, unable
from backends.lenient import Json, children, count, text
from backends.upstream import Post, UpstreamAnswer, cannot

_VERSION = "2023-06-01"
_MAX_TOKENS = 4096  # the API wants a limit, and every model that speaks it allows this one
_COUNTED = {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"}
_SYSTEM = ("system", "developer")


class AnthropicUpstream:
    """Anthropic itself, and what imitates it."""

    def post(self, call: Call, model: str) -> Post:
        """Write a call; every answer is streamed so that it can be cancelled."""
        body = _passed_on(call.body) if call.dialect == "messages" else _written(call)
        return Post("/messages", {**body, "model": model, "stream": True})

    def tokenize(self, call: Call, model: str) -> Post:
        """Ask for the count: this API tells no more."""
        asked = self.post(call, model).body
        return Post("/messages/count_tokens", {name: value for name, value in asked.items() if name in _COUNTED})

    def tokens(self, body: Json) -> Sequence[int]:
        """Give as many numbers as tokens were counted; their ids are the server's secret."""
        return range(count(body, "input_tokens") or 0)

    def detokenize(self, token_ids: Sequence[int], model: str) -> Post:
        """Refuse: this API has no tokens."""
        del token_ids, model
        raise unable("turn tokens into text")

    def embed(self, call: Call, model: str) -> Post:
        """Refuse: this API has no embeddings."""
        del call, model
        raise unable("make embeddings")

    def headers(self, api_key: str) -> Mapping[str, str]:
        """Sign by an API key."""
        return {"anthropic-version": _VERSION} | ({"x-api-key": api_key} if api_key else {})

    def answer(self, call: Call) -> UpstreamAnswer:
        """Prepare to read events."""
        return Events(call)


def _passed_on(body: Json) -> dict[str, object]:
    """Leave out of a body what was thought elsewhere, in an earlier turn: this server would refuse its signature."""
    turns = (_without_foreign_thoughts(turn) for turn in children(body, "messages"))
    return {**body, "messages": [turn for turn in turns if turn is not None]}


def _without_foreign_thoughts(turn: Json) -> Json | None:
    blocks = children(turn, "content")
    kept = [block for block in blocks if not text(block, "signature").startswith(OWN_SIGNATURE)]
    if len(kept) == len(blocks):
        return turn
    return {**turn, "content": kept} if kept else None


def _written(call: Call) -> dict[str, object]:
    """Write a call that came in another API."""
    _refuse(call)
    system = "\n\n".join(message.text for message in call.messages if message.role in _SYSTEM and message.text)
    optional: dict[str, object] = {
        "system": system,
        "stop_sequences": list(call.stop),
        "tools": [_tool(tool) for tool in call.tools],
        "top_k": call.sampling.top_k,
    }
    body = {name: value for name, value in optional.items() if value}
    body |= {"messages": list(_turns(call.messages)), "max_tokens": call.max_tokens or _MAX_TOKENS}
    body |= {name: value for name in ("temperature", "top_p") if (value := getattr(call.sampling, name)) != 1.0}
    return body | _format(call) | _tool_choice(call)


def _refuse(call: Call) -> None:
    """Refuse what this API cannot be asked: to leave it out would be to answer something else."""
    sampling = call.sampling
    cannot_say = {
        "prompt": bool(call.prompts),
        "n": call.choices > 1,
        "logprobs": call.logprobs is not None,
        "min_tokens": call.min_tokens > 0,
        "ignore_eos": call.ignore_eos,
        "min_p": sampling.min_p > 0,
        "presence_penalty": sampling.presence_penalty != 0,
        "frequency_penalty": sampling.frequency_penalty != 0,
        "repetition_penalty": sampling.repetition_penalty != 1,
        "logit_bias": bool(sampling.logit_bias),
        "response_format": call.response_format.kind not in {"text", "json_schema"},
    }
    for param, is_asked in cannot_say.items():
        if is_asked:
            raise cannot(param, "is not known to the server behind this model, which speaks Anthropic's API")
    if sampling.temperature > 1:
        raise cannot("temperature", f"is {sampling.temperature}; the server behind this model takes 0 to 1")


def _turns(messages: Iterable[Message]) -> Iterator[dict[str, object]]:
    """Yield the turns of user and assistant; the results of tools are a user's words here."""
    said = [message for message in messages if message.role not in _SYSTEM]
    for is_assistant, turn in groupby(said, key=lambda message: message.role == "assistant"):
        blocks = [block for message in turn for block in _blocks(message)]
        yield {"role": "assistant" if is_assistant else "user", "content": blocks}


def _blocks(message: Message) -> Iterator[dict[str, object]]:
    if message.role == "tool":
        yield {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.text}
    elif message.text:  # an empty block is refused
        yield {"type": "text", "text": message.text}
    for call in message.tool_calls:
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call)}


def _input(call: ToolCall) -> object:
    try:
        given = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError as exc:
        raise cannot("messages", f"hold a call of {call.name} whose arguments are not JSON") from exc
    return given


def _tool(tool: Tool) -> dict[str, object]:
    schema = {"type": "object", **tool.parameters}
    written: dict[str, object] = {"name": tool.name, "description": tool.description, "input_schema": schema}
    return written | ({"strict": True} if tool.strict else {})


def _format(call: Call) -> dict[str, object]:
    if call.response_format.kind != "json_schema":
        return {}
    return {"output_config": {"format": {"type": "json_schema", "schema": call.response_format.schema}}}


def _tool_choice(call: Call) -> dict[str, object]:
    if not call.tools:
        return {}
    choice: dict[str, object] = {"type": {"auto": "auto", "none": "none", "required": "any"}[call.tool_choice.mode]}
    if call.tool_choice.name is not None:
        choice = {"type": "tool", "name": call.tool_choice.name}
    if not call.parallel_tool_calls and call.tool_choice.mode != "none":
        choice["disable_parallel_tool_use"] = True
    return {} if choice == {"type": "auto"} else {"tool_choice": choice}
