"""Anthropic's messages: request bodies into a `Call`, refusals into Anthropic's error shape.

Refuses to know how answers are written; `anthropic_answers` does. Thinking blocks of earlier turns are dropped, as
Anthropic itself drops them; a tool's error is told to the model by the word "Error" before its text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import orjson

from backends.api import Call, Message, Role, Sampling, ToolCall
from gateway.dialects import Answer
from gateway.dialects.anthropic_answers import PING, MessageAnswer, error_body
from gateway.dialects.fields import Fields, as_json, as_text, parse_object, quoted, refusal
from gateway.dialects.tools import messages_format, messages_tools
from gateway.dialects.turns import joined
from gateway.refusal import Refusal

_ROLES: tuple[Role, ...] = ("user", "assistant", "system")
_SPEAKERS: frozenset[Role] = frozenset({"user", "assistant"})
_THOUGHTS = ("thinking", "redacted_thinking")
_THINKING = ("enabled", "adaptive", "between_tools", "disabled")
_MAX_MESSAGES = 100_000
_MAX_STOPS = 64
_INTEGER_MAX = (1 << 31) - 1
_OVERLOADED = 529  # what Anthropic answers where others say 503; its SDKs back off on it


class Messages:
    """`POST /v1/messages`."""

    ping = PING

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read a request for a message."""
        fields = parse_object(body)
        fields.require("max_tokens")
        return replace(
            _question(fields, call_id, tenant),
            max_tokens=fields.integer("max_tokens", None, low=1, high=_INTEGER_MAX),
            sampling=_sampling(fields),
            stop=_stop(fields),
            stream=fields.flag("stream"),
        )

    def answer(self, call: Call, *, now: float) -> Answer:
        """Prepare the events or the body of a message; Anthropic dates neither."""
        del now
        return MessageAnswer(call)

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Write a refusal."""
        return error(refusal, request_id)


class TokenCount:
    """`POST /v1/messages/count_tokens`: the same body without what only an answer needs."""

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read the prompt that is to be counted."""
        return _question(parse_object(body), call_id, tenant)

    def counted(self, tokens: int) -> bytes:
        """Say how many tokens the prompt has."""
        return orjson.dumps({"input_tokens": tokens})

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Write a refusal."""
        return error(refusal, request_id)


def error(refusal: Refusal, request_id: str) -> tuple[int, bytes]:
    """Write a refusal in the shape of every Anthropic endpoint."""
    status = _OVERLOADED if refusal.status == 503 else refusal.status
    return status, orjson.dumps(error_body(refusal, request_id))


def _question(fields: Fields, call_id: str, tenant: str) -> Call:
    """Read what makes the prompt."""
    fields.unsupported("container")
    fields.unsupported("mcp_servers", unless=([],))
    tools = messages_tools(fields)
    return Call(
        id=call_id,
        model=fields.required_text("model"),
        messages=_conversation(fields),
        tools=tools.tools,
        tool_choice=tools.choice,
        parallel_tool_calls=tools.parallel,
        response_format=messages_format(fields),
        thinking=_thinking(fields.child("thinking")) if fields.has("thinking") else None,
        tenant=tenant,
        dialect="messages",
        body=fields.values,
    )


def _thinking(wish: Fields) -> bool:
    return wish.choice("type", _THINKING) != "disabled"


def _sampling(fields: Fields) -> Sampling:
    return Sampling(
        temperature=fields.number("temperature", 1.0, low=0, high=1),
        top_p=fields.number("top_p", 1.0, low=0, high=1),
        top_k=fields.integer("top_k", 0, low=0, high=_INTEGER_MAX),
    )


def _stop(fields: Fields) -> tuple[str, ...]:
    items = fields.array("stop_sequences", longest=_MAX_STOPS)
    stops = tuple(as_text(item, f"stop_sequences[{i}]") for i, item in enumerate(items))
    if "" in stops:
        raise refusal("stop_sequences", "holds an empty string, which would stop every answer at once")
    return stops


def _conversation(fields: Fields) -> tuple[Message, ...]:
    fields.require("messages")
    said = fields.objects("messages", longest=_MAX_MESSAGES)
    if not said:
        raise refusal("messages", "is empty; at least one message is required")
    turns = joined((turn for message in said for turn in _turns(message)), roles=_SPEAKERS)
    if turns[-1].role == "assistant":
        last = said[-1].path
        raise refusal(last, "is the assistant's; answers cannot be prefilled here, so end with a user's message")
    system = _text(fields, "system")
    return (Message("system", system), *turns) if system else turns


def _turns(message: Fields) -> Iterator[Message]:
    """Return the turns of one message; each tool result is a turn of its own."""
    role = message.choice("role", _ROLES)
    message.require("content")
    match role:
        case "user":
            yield from _user_turns(message)
        case "assistant":
            yield _assistant_turn(_blocks(message, "content"))
        case _:
            yield Message(role, _text(message, "content"))


def _user_turns(message: Fields) -> Iterator[Message]:
    for block in _blocks(message, "content"):
        if _kind(block) == "tool_result":
            yield Message("tool", _result(block), tool_call_id=block.required_text("tool_use_id"))
        else:
            yield Message("user", _said(block))


def _assistant_turn(blocks: list[Fields]) -> Message:
    texts = [_said(block) for block in blocks if _kind(block) not in {"tool_use", *_THOUGHTS}]
    calls = tuple(_tool_use(block) for block in blocks if _kind(block) == "tool_use")
    return Message("assistant", "\n".join(texts), tool_calls=calls)


def _tool_use(block: Fields) -> ToolCall:
    arguments = as_json(block.child("input").values, block.path_of("input"))
    return ToolCall(block.required_text("id"), block.required_text("name"), arguments)


def _result(block: Fields) -> str:
    text = _text(block, "content")
    return f"Error: {text}" if block.flag("is_error") else text


def _text(fields: Fields, name: str) -> str:
    return "\n".join(_said(block) for block in _blocks(fields, name))


def _blocks(fields: Fields, name: str) -> list[Fields]:
    """Return the content blocks of a field; a string is short for one block of text."""
    content = fields.values.get(name)
    if isinstance(content, str):
        return [Fields({"type": "text", "text": content}, fields.path_of(name))]
    if content is not None and not isinstance(content, list):
        raise refusal(fields.path_of(name), "must be a string or an array of content blocks", code="invalid_type")
    return fields.objects(name, longest=_MAX_MESSAGES)


def _kind(block: Fields) -> str:
    return as_text(block.values.get("type"), block.path_of("type"))


def _said(block: Fields) -> str:
    if _kind(block) == "text":
        block.require("text")
        return block.text("text", "")
    raise refusal(
        block.path,
        f"is a block of the type {quoted(_kind(block))}; the models here read text only, so send text blocks",
        code="unsupported_value",
    )
