"""Deltas into the events and bodies of Anthropic's messages.

Refuses to know requests and HTTP. Thoughts are told where the request asks for them, as Anthropic does, in blocks with
a signature: the external server's that had them, else one that only says whose they are. Within a block a delta is
three pieces of bytes joined: what stands around the text is encoded once a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import orjson

from backends.api import OWN_SIGNATURE, Call, Delta, Finish, ToolCallDelta, Usage
from gateway.dialects.events import MARK, around, event
from gateway.refusal import Refusal

_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_STOP_REASONS: Mapping[Finish, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_Kind = Literal["thinking", "text", "tool_use"]
_PIECES: Mapping[_Kind, tuple[str, str]] = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
}
_EMPTY: Mapping[_Kind, Mapping[str, str]] = {
    "thinking": {"thinking": "", "signature": ""},
    "text": {"text": ""},
    "tool_use": {},
}
PING = event("ping", b'{"type":"ping"}')
_MESSAGE_STOP = event("message_stop", b'{"type":"message_stop"}')


def error_body(refusal: Refusal, request_id: str) -> dict[str, object]:
    """Write a refusal as Anthropic's error object, which has no place for code and param; the message names both."""
    kind = _ERROR_TYPES.get(refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": request_id}


class MessageAnswer:
    """The answer to one call: a message of thinking, text and tool_use blocks, one after the other."""

    def __init__(self, call: Call) -> None:
        self._head = {"id": f"msg_{call.id}", "type": "message", "role": "assistant", "model": call.model}
        self._thinks = _shows_thinking(call)
        self._signature = OWN_SIGNATURE + call.id
        self._block: _Kind | Literal[""] = ""  # what is open
        self._index = -1
        self._before = self._after = b""  # around the text, or whatever it is, of the open block
        self._stopped: Mapping[str, object] = _stopped(None)
        self._tokens = 0

    def begin(self, usage: Usage | None) -> bytes:
        """Say that a message starts, and the prompt's counts if they are known."""
        body = {**self._head, "content": [], **_stopped(None), "usage": _usage_body(usage or Usage(0, 0))}
        return _event("message_start", message=body) + PING

    def chunk(self, delta: Delta) -> bytes:
        """Say thoughts, text and tool calls, each in a block of its kind; the end closes the open block."""
        self._tokens += delta.tokens
        said = self._think(delta) if self._thinks else b""
        if delta.text:
            said += self._say("text", delta.text)
        if not delta.tool_calls and delta.finish is None:
            return said
        said += b"".join(self._tool_piece(piece) for piece in delta.tool_calls)
        if delta.finish is None:
            return said
        self._stopped = _stopped(delta)
        return said + self._close()

    def end(self, usage: Usage | None) -> bytes:
        """Say why the message stopped and what it cost."""
        counts = _usage_body(usage or Usage(0, self._tokens))
        return _event("message_delta", delta=self._stopped, usage=counts) + _MESSAGE_STOP

    def error(self, refusal: Refusal, request_id: str) -> bytes:
        """Say what broke the answer off."""
        return event("error", orjson.dumps(error_body(refusal, request_id)))

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """Give the message; refuses (502) a tool call whose input is not JSON, as nothing could be called with it."""
        last = next((delta for delta in deltas if delta.finish), None)
        is_cut = last is not None and last.finish == "length"
        blocks = _blocks(deltas if self._thinks else [replace(delta, reasoning="", signature="") for delta in deltas])
        content = [block.body(self._signature) for block in blocks if not (is_cut and block.is_broken)]
        usage = next((delta.usage for delta in reversed(deltas) if delta.usage), None)
        usage = usage or Usage(0, sum(delta.tokens for delta in deltas))
        return orjson.dumps({**self._head, "content": content, **_stopped(last), "usage": _usage_body(usage)})

    def _think(self, delta: Delta) -> bytes:
        """Say thoughts; a signature that came with them ends their block."""
        said = self._say("thinking", delta.reasoning) if delta.reasoning else b""
        if not delta.signature:
            return said
        opened = b"" if self._block == "thinking" else self._open("thinking")
        return said + opened + self._close(delta.signature)

    def _say(self, kind: _Kind, text: str) -> bytes:
        opened = b"" if self._block == kind else self._open(kind)
        return opened + self._before + orjson.dumps(text) + self._after

    def _tool_piece(self, piece: ToolCallDelta) -> bytes:
        opened = b""
        if piece.id is not None:
            opened = self._open("tool_use", id=piece.id, name=piece.name, input={})
        return opened + (self._say("tool_use", piece.arguments) if piece.arguments else b"")

    def _open(self, kind: _Kind, **said: object) -> bytes:
        closed = self._close()
        self._block, self._index = kind, self._index + 1
        piece, name = _PIECES[kind]
        delta = {"type": piece, name: MARK}
        self._before, self._after = around(_event("content_block_delta", index=self._index, delta=delta))
        block = {"type": kind, **(said or _EMPTY[kind])}
        return closed + _event("content_block_start", index=self._index, content_block=block)

    def _close(self, signature: str = "") -> bytes:
        was_open, self._block = self._block, ""
        stopped = _event("content_block_stop", index=self._index) if was_open else b""
        if was_open != "thinking":
            return stopped
        delta = {"type": "signature_delta", "signature": signature or self._signature}
        return _event("content_block_delta", index=self._index, delta=delta) + stopped


@dataclass(slots=True)
class _Block:
    """One block of a whole message; `tool` is the first piece of a tool call, `signature` the end of thoughts."""

    kind: _Kind
    tool: ToolCallDelta | None = None
    pieces: list[str] = field(default_factory=list)
    signature: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether this is a tool call whose arguments are no JSON object."""
        return self.tool is not None and self._input() is None

    def body(self, signature: str) -> dict[str, object]:
        """Write the block; thoughts that have no signature get this one."""
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": "".join(self.pieces), "signature": self.signature or signature}
        if self.tool is None:
            return {"type": "text", "text": "".join(self.pieces)}
        given = self._input()
        if given is None:
            message = f"the model called {self.tool.name} with input that is not JSON; try again, or set strict for it"
            raise Refusal(502, "invalid_tool_input", message)
        return {"type": "tool_use", "id": self.tool.id, "name": self.tool.name, "input": given}

    def _input(self) -> dict[str, object] | None:
        try:
            given = orjson.loads("".join(self.pieces) or "{}")
        except orjson.JSONDecodeError:
            return None
        return given if isinstance(given, dict) else None


def _blocks(deltas: Sequence[Delta]) -> list[_Block]:
    """Gather what was said into blocks."""
    blocks: list[_Block] = []
    for delta in deltas:
        if delta.reasoning or delta.signature:
            block = _last(blocks, "thinking")
            block.pieces.append(delta.reasoning)
            block.signature = delta.signature
        if delta.text:
            _last(blocks, "text").pieces.append(delta.text)
        for piece in delta.tool_calls:
            if piece.id is not None:
                blocks.append(_Block("tool_use", piece))
            blocks[-1].pieces.append(piece.arguments)
    return blocks


def _last(blocks: list[_Block], kind: _Kind) -> _Block:
    """Return the block that goes on, or begin one; a signature has ended its own."""
    if not blocks or blocks[-1].kind != kind or blocks[-1].signature:
        blocks.append(_Block(kind))
    return blocks[-1]


def _shows_thinking(call: Call) -> bool:
    """Whether the caller wants to see thoughts: it asks for thinking, and not to omit it."""
    wish = call.body.get("thinking")
    return call.thinking is True and not (isinstance(wish, dict) and wish.get("display") == "omitted")


def _stopped(delta: Delta | None) -> dict[str, object]:
    """Say why a message stopped; nothing has stopped it yet without a delta."""
    if delta is None or delta.finish is None:
        return {"stop_reason": None, "stop_sequence": None}
    reason = "stop_sequence" if delta.stop is not None else _STOP_REASONS[delta.finish]
    return {"stop_reason": reason, "stop_sequence": delta.stop}


def _usage_body(usage: Usage) -> dict[str, object]:
    """Write token counts; Anthropic's input_tokens are those that were not read from the cache."""
    return {
        "input_tokens": usage.computed_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _event(kind: str, **body: object) -> bytes:
    return event(kind, orjson.dumps({"type": kind, **body}))
