"""Deltas into the chunks and bodies of OpenAI's chat completions and completions.

Refuses to know requests and HTTP. A delta that is only text, which nearly all are, is three pieces of bytes joined:
what stands around the text is encoded once a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from backends.api import Call, Delta, TokenLogprob, ToolCallDelta, Usage
from gateway.refusal import Refusal

_MARK = "\x00text"  # stands for the text while its surroundings are encoded; no configured model has it in its name
_DONE = b"data: [DONE]\n\n"
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(refusal: Refusal) -> dict[str, object]:
    """Write a refusal as OpenAI's error object."""
    kind = _ERROR_TYPES.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def _usage_body(usage: Usage) -> dict[str, object]:
    """Write token counts as both endpoints do."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _event(body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _around(event: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and after the text of an event."""
    head, _, tail = event.partition(orjson.dumps(_MARK))
    return head, tail


class _OpenAIAnswer:
    """What both endpoints' answers share; `_text_chunk` and `_choice` are what differs."""

    def __init__(self, call: Call, head: dict[str, object]) -> None:
        self._call, self._head = call, head
        # OpenAI puts a null usage into the other chunks of a stream that ends with a real one.
        self._no_usage = {"usage": None} if call.include_usage else {}
        self._texts = [_around(self._text_chunk(i, _MARK)) for i in range(call.sequences if call.stream else 0)]

    def end(self, usage: Usage | None) -> bytes:
        """Say the usage if the caller asked for it, and the end."""
        if usage is None or not self._call.include_usage:
            return _DONE
        return _event({**self._head, "choices": [], "usage": _usage_body(usage)}) + _DONE

    def error(self, refusal: Refusal, request_id: str) -> bytes:
        """Say what broke the answer off, in the form the SDKs raise."""
        del request_id
        return _event(error_body(refusal))

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """Give the body with all choices."""
        choices = [self._choice(i, [d for d in deltas if d.index == i]) for i in range(self._call.sequences)]
        usage = next((_usage_body(delta.usage) for delta in reversed(deltas) if delta.usage), None)
        return orjson.dumps({**self._head, "choices": choices, "usage": usage})

    def _plain(self, delta: Delta) -> bytes:
        """Say a delta that is nothing but text."""
        head, tail = self._texts[delta.index]
        return head + orjson.dumps(delta.text) + tail if delta.text else b""

    def _event(self, choice: dict[str, object]) -> bytes:
        return _event({**self._head, "choices": [choice], **self._no_usage})

    def _text_chunk(self, index: int, text: str) -> bytes:
        raise NotImplementedError

    def _choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, object]:
        raise NotImplementedError


class ChatAnswer(_OpenAIAnswer):
    """The answer to a chat completion."""

    def __init__(self, call: Call, *, now: float) -> None:
        kind = "chat.completion.chunk" if call.stream else "chat.completion"
        head = {"id": f"chatcmpl-{call.id}", "object": kind, "created": int(now), "model": call.model}
        self._thoughts: dict[int, tuple[bytes, bytes]] = {}
        super().__init__(call, head)

    def begin(self, usage: Usage | None) -> bytes:
        """Say the role of each sequence."""
        del usage
        return b"".join(self._chunk(i, {"role": "assistant", "content": ""}) for i in range(self._call.sequences))

    def chunk(self, delta: Delta) -> bytes:
        """Say text, logprobs and tool calls in one chunk; thoughts and the end of a sequence have their own."""
        if delta.finish is None and not delta.logprobs and not delta.tool_calls:
            return self._thought(delta) + self._plain(delta) if delta.reasoning else self._plain(delta)
        said = self._thought(delta) if delta.reasoning else b""
        said += self._rich_chunk(delta) if delta.text or delta.logprobs or delta.tool_calls else b""
        return said + self._chunk(delta.index, {}, finish=delta.finish) if delta.finish else said

    def _chunk(
        self, index: int, delta: dict[str, object], *, finish: str | None = None, logprobs: object = None
    ) -> bytes:
        return self._event({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})

    def _text_chunk(self, index: int, text: str) -> bytes:
        return self._chunk(index, {"content": text})

    def _thought(self, delta: Delta) -> bytes:
        """Say thoughts; what stands around them is encoded when a sequence has the first: 380 ns each, not 960."""
        if delta.index not in self._thoughts:
            self._thoughts[delta.index] = _around(self._chunk(delta.index, {"reasoning_content": _MARK}))
        head, tail = self._thoughts[delta.index]
        return head + orjson.dumps(delta.reasoning) + tail

    def _rich_chunk(self, delta: Delta) -> bytes:
        said: dict[str, object] = {}
        if delta.text or delta.logprobs:
            said["content"] = delta.text
        if delta.tool_calls:
            said["tool_calls"] = [_tool_call_piece(piece) for piece in delta.tool_calls]
        logprobs = _chat_logprobs(delta.logprobs) if delta.logprobs else None
        return self._chunk(delta.index, said, logprobs=logprobs)

    def _choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, object]:
        text = "".join(delta.text for delta in deltas)
        tool_calls = _whole_tool_calls(piece for delta in deltas for piece in delta.tool_calls)
        message: dict[str, object] = {"role": "assistant", "content": text or (None if tool_calls else "")}
        message |= {"refusal": None} | ({"tool_calls": tool_calls} if tool_calls else {})
        if reasoning := "".join(delta.reasoning for delta in deltas):
            message["reasoning_content"] = reasoning
        logprobs = None
        if self._call.logprobs is not None:
            logprobs = _chat_logprobs(entry for delta in deltas for entry in delta.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": _finish_of(deltas)}


class CompletionAnswer(_OpenAIAnswer):
    """The answer to a text completion."""

    def __init__(self, call: Call, *, now: float) -> None:
        head = {"id": f"cmpl-{call.id}", "object": "text_completion", "created": int(now), "model": call.model}
        self._offsets = [0] * call.sequences
        super().__init__(call, head)

    def begin(self, usage: Usage | None) -> bytes:
        """Say nothing: a text completion has no role."""
        del usage
        return b""

    def chunk(self, delta: Delta) -> bytes:
        """Say everything of the delta in one chunk."""
        if delta.finish is None and not delta.logprobs:
            return self._plain(delta)
        logprobs = None
        if delta.logprobs:
            logprobs = _completion_logprobs(delta.logprobs, self._offsets[delta.index])
            self._offsets[delta.index] += sum(len(entry.text) for entry in delta.logprobs)
        return self._event(
            {"index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish}
        )

    def _text_chunk(self, index: int, text: str) -> bytes:
        return self._event({"index": index, "text": text, "logprobs": None, "finish_reason": None})

    def _choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, object]:
        logprobs = None
        if self._call.logprobs is not None:
            logprobs = _completion_logprobs([entry for delta in deltas for entry in delta.logprobs], 0)
        text = "".join(delta.text for delta in deltas)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": _finish_of(deltas)}


def _finish_of(deltas: Sequence[Delta]) -> str | None:
    return next((delta.finish for delta in deltas if delta.finish), None)


def _tool_call_piece(piece: ToolCallDelta) -> dict[str, object]:
    function: dict[str, object] = {"arguments": piece.arguments}
    if piece.id is None:
        return {"index": piece.index, "function": function}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, **function}}


def _whole_tool_calls(pieces: Iterable[ToolCallDelta]) -> list[dict[str, object]]:
    """Join the pieces of each tool call."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for piece in pieces:
        calls.setdefault(piece.index, []).append(piece)
    return [_whole_tool_call(parts) for _, parts in sorted(calls.items())]


def _whole_tool_call(parts: Sequence[ToolCallDelta]) -> dict[str, object]:
    function = {"name": parts[0].name, "arguments": "".join(part.arguments for part in parts)}
    return {"id": parts[0].id, "type": "function", "function": function}


def _chat_logprobs(entries: Iterable[TokenLogprob]) -> dict[str, object]:
    content = [
        _token_logprob(entry.text, entry.utf8, entry.logprob)
        | {"top_logprobs": [_token_logprob(*alternative) for alternative in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _token_logprob(text: str, utf8: tuple[int, ...], logprob: float) -> dict[str, object]:
    return {"token": text, "logprob": logprob, "bytes": list(utf8)}


def _completion_logprobs(entries: Sequence[TokenLogprob], offset: int) -> dict[str, object]:
    """Write the four parallel arrays of the old shape; `offset` is where the first token begins in the answer."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.text)
    return {
        "tokens": [entry.text for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_alternatives(entry) for entry in entries],
        "text_offset": offsets,
    }


def _alternatives(entry: TokenLogprob) -> dict[str, float]:
    """Map the most likely tokens to their logprobs; the chosen one is always among them."""
    return {text: logprob for text, _, logprob in entry.top} | {entry.text: entry.logprob}
