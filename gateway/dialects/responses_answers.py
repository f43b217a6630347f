"""Deltas into the events and bodies of OpenAI's responses.

Refuses to know requests and HTTP. A delta that is only text, which nearly all are, is pieces of bytes joined: what
stands around the text and its sequence number is encoded once an item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import orjson

from backends.api import Call, Delta, Finish, Message, TokenLogprob, ToolCall, ToolCallDelta, Usage
from gateway.dialects.events import MARK, around, event
from gateway.dialects.openai_answers import error_body
from gateway.dialects.response_ids import item_id, response_id
from gateway.dialects.stored import StoredResponse, StoredResponses
from gateway.refusal import Refusal

Json = dict[str, object]
_Kind = Literal["message", "reasoning", "function_call"]

# What a response tells back of its request, and what it says where the request said nothing.
_ECHOED: Mapping[str, object] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "tool_choice": "auto",
    "truncation": "disabled",
    "user": None,
}
_TEXTS: Mapping[_Kind, str] = {"message": "output_text", "reasoning": "reasoning_text"}  # as their events name them
_INCOMPLETE: Mapping[Finish, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
_FAILURES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}  # the published codes that fit; else server_error


class ResponseAnswer:
    """The answer to one call: items of thoughts, text and function calls, one after the other."""

    def __init__(self, call: Call, stored: StoredResponses, *, now: float) -> None:
        self._call, self._stored = call, stored
        previous_id = call.body.get("previous_response_id")
        self._id = response_id(call.id, previous_id if isinstance(previous_id, str) else None)
        self._constant = orjson.dumps(_constant(call, self._id, now))[:-1] + b","
        self._items: list[Json] = []  # those that are finished, and the open one
        self._open: _Kind | Literal[""] = ""
        self._pieces: list[str] = []  # of the open item
        self._logprobs: list[Json] = []
        self._before = self._after = b""  # around the text, or the arguments, of the open item
        self._finish: Finish = "stop"
        self._sequence = 0
        self._tokens = self._thought_tokens = 0

    def begin(self, usage: Usage | None) -> bytes:
        """Say that a response starts."""
        del usage
        response = self._response("in_progress")
        return self._lifecycle("response.created", response) + self._lifecycle("response.in_progress", response)

    def chunk(self, delta: Delta) -> bytes:
        """Say thoughts, text and tool calls, each in an item of its kind; the end closes the open item."""
        self._tokens += delta.tokens
        said = self._think(delta) if delta.reasoning else b""
        if delta.logprobs:
            said += self._say_logprobs(delta)
        elif delta.text:
            said += self._say("message", delta.text)
        if not delta.tool_calls and delta.finish is None:
            return said
        said += b"".join(self._tool_piece(piece) for piece in delta.tool_calls)
        if delta.finish is None:
            return said
        self._finish = delta.finish
        return said + self._close("incomplete" if delta.finish in _INCOMPLETE else "completed")

    def end(self, usage: Usage | None) -> bytes:
        """Give the full response, and store it."""
        kind = "response.incomplete" if self._finish in _INCOMPLETE else "response.completed"
        return self._lifecycle(kind, self._finished(usage))

    def error(self, refusal: Refusal, request_id: str) -> bytes:
        """Say what broke the answer off: for clients that read the response, and for those that raise on `error`."""
        del request_id
        closed = self._close("incomplete")
        failure = {"code": _FAILURES.get(refusal.status, "server_error"), "message": refusal.message}
        failed = self._lifecycle("response.failed", self._response("failed", error=failure))
        told = {"code": refusal.code, "message": refusal.message, "param": refusal.param}
        return closed + failed + self._event("error", **told, **error_body(refusal))

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """Give the full response, as at the end of a stream, and store it."""
        for delta in deltas:
            self.chunk(delta)
        return self._finished(next((delta.usage for delta in reversed(deltas) if delta.usage), None))

    def _think(self, delta: Delta) -> bytes:
        self._thought_tokens += 0 if delta.text else delta.tokens
        return self._say("reasoning", delta.reasoning)

    def _say(self, kind: _Kind, text: str) -> bytes:
        opened = b"" if self._open == kind else self._open_texts(kind)
        self._pieces.append(text)
        number, self._sequence = self._sequence, self._sequence + 1
        return b"%b%b%b%b%d}\n\n" % (opened, self._before, orjson.dumps(text), self._after, number)

    def _say_logprobs(self, delta: Delta) -> bytes:
        opened = b"" if self._open == "message" else self._open_texts("message")
        logprobs = [_logprob(entry) for entry in delta.logprobs]
        self._pieces.append(delta.text)
        self._logprobs += logprobs
        place = {**self._place(), "content_index": 0}
        return opened + self._event("response.output_text.delta", **place, delta=delta.text, logprobs=logprobs)

    def _tool_piece(self, piece: ToolCallDelta) -> bytes:
        opened = self._open_function_call(piece) if piece.id is not None else b""
        return opened + (self._say("function_call", piece.arguments) if piece.arguments else b"")

    def _open_texts(self, kind: _Kind) -> bytes:
        """Begin an item of one part, which is text: what is said or what is thought."""
        closed = self._close("completed")
        thinks = kind == "reasoning"
        item = self._add("reasoning", "rs", summary=[]) if thinks else self._add("message", "msg", role="assistant")
        item["content"] = []
        added = self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)
        place: Json = {**self._place(), "content_index": 0}
        logprobs: Json = {} if thinks else {"logprobs": []}
        self._expect(f"response.{_TEXTS[kind]}.delta", {**place, "delta": MARK, **logprobs})
        return closed + added + self._event("response.content_part.added", **place, part=_part(kind, "", []))

    def _open_function_call(self, piece: ToolCallDelta) -> bytes:
        closed = self._close("completed")
        item = self._add("function_call", "fc", call_id=piece.id, name=piece.name, arguments="")
        self._expect("response.function_call_arguments.delta", {**self._place(), "delta": MARK})
        return closed + self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _add(self, kind: _Kind, prefix: str, **said: object) -> Json:
        number = len(self._items)
        item = {"id": item_id(prefix, number, self._id), "type": kind, "status": "in_progress", **said}
        self._items.append(item)
        self._open, self._pieces, self._logprobs = kind, [], []
        return item

    def _close(self, status: str) -> bytes:
        """Finish the open item with all it said."""
        if not self._open:
            return b""
        item, text, place = self._items[-1], "".join(self._pieces), self._place()
        item["status"] = status
        if self._open == "function_call":
            item["arguments"] = text
            said = self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=text)
        else:
            place["content_index"], part = 0, _part(self._open, text, self._logprobs)
            item["content"] = [part]
            logprobs: Json = {"logprobs": self._logprobs} if self._open == "message" else {}
            said = self._event(f"response.{_TEXTS[self._open]}.done", **place, text=text, **logprobs)
            said += self._event("response.content_part.done", **place, part=part)
        self._open = ""
        return said + self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _place(self) -> Json:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _expect(self, kind: str, body: Json) -> None:
        """Encode what will stand around each text of the open item; the sequence number and `}` end the event."""
        encoded = orjson.dumps({"type": kind, **body})[:-1] + b',"sequence_number":'
        self._before, self._after = around(b"event: " + kind.encode() + b"\ndata: " + encoded)

    def _finished(self, usage: Usage | None) -> bytes:
        reason = _INCOMPLETE.get(self._finish)
        body = self._response(
            "incomplete" if reason else "completed",
            incomplete_details={"reason": reason} if reason else None,
            usage=_usage_body(usage or Usage(0, self._tokens), self._thought_tokens),
        )
        if self._call.body.get("store") is not False:
            self._stored.keep(self._record(body))
        return body

    def _record(self, body: bytes) -> StoredResponse:
        has_instructions = bool(self._call.body.get("instructions"))
        return StoredResponse(
            self._id,
            self._call.tenant,
            body,
            turns=self._call.messages[has_instructions:],
            items=tuple(_message(item) for item in self._items),
            conversation=_conversation_id(self._call),
        )

    def _response(self, status: str, **known: object) -> bytes:
        changing = {"error": None, "incomplete_details": None, "usage": None, **known}
        return self._constant + orjson.dumps({"status": status, "output": self._items, **changing})[1:]

    def _lifecycle(self, kind: str, response: bytes) -> bytes:
        start = b'{"type":"' + kind.encode() + b'","response":'
        return event(kind, start + response + b',"sequence_number":' + self._number() + b"}")

    def _event(self, kind: str, **body: object) -> bytes:
        return event(kind, orjson.dumps({"type": kind, **body, "sequence_number": int(self._number())}))

    def _number(self) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return b"%d" % number


def _constant(call: Call, own_id: str, now: float) -> Json:
    """Write what every state of the response has in common."""
    conversation = _conversation_id(call)
    text = call.body.get("text")
    asked_format = {"format": {"type": "text"}} | (text if isinstance(text, dict) else {})
    return {
        "id": own_id,
        "object": "response",
        "created_at": int(now),
        "model": call.model,
        "background": False,
        "conversation": {"id": conversation} if conversation else None,
        "parallel_tool_calls": call.parallel_tool_calls,
        "service_tier": "default",
        "temperature": call.sampling.temperature,
        "text": asked_format,
        "tools": [_tool(call, i) for i in range(len(call.tools))],
        "top_logprobs": call.logprobs or 0,
        "top_p": call.sampling.top_p,
        **{
            name: call.body.get(name) if call.body.get(name) is not None else absent for name, absent in _ECHOED.items()
        },
    }


def _conversation_id(call: Call) -> str | None:
    given = call.body.get("conversation")
    named = given.get("id") if isinstance(given, dict) else given
    return named if isinstance(named, str) else None


def _tool(call: Call, number: int) -> Json:
    tool = call.tools[number]
    schema = dict(tool.parameters)
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": schema,
        "strict": tool.strict,
    }


def _part(kind: _Kind, text: str, logprobs: list[Json]) -> Json:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _logprob(entry: TokenLogprob) -> Json:
    top = [{"token": text, "bytes": list(utf8), "logprob": logprob} for text, utf8, logprob in entry.top]
    return {"token": entry.text, "bytes": list(entry.utf8), "logprob": entry.logprob, "top_logprobs": top}


def _message(item: Json) -> Message:
    """Return what an item said, as a turn for the next call; thoughts are no part of it."""
    match item:
        case {"type": "reasoning"}:
            return Message("assistant")
        case {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}:
            return Message("assistant", tool_calls=(ToolCall(str(call_id), str(name), str(arguments)),))
        case {"content": [{"text": text}]}:
            return Message("assistant", str(text))
        case _:
            raise AssertionError(item)


def _usage_body(usage: Usage, thought_tokens: int) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": thought_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
