"""The events that a server which speaks Anthropic's messages answers with, as deltas.

Refuses to know sockets. Events and blocks that are not known are skipped, as the API asks; so is redacted thinking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import orjson

from backends.api import Call, Delta, Finish, ToolCallDelta, Usage
from backends.lenient import Json, child, children, count, parsed, text
from backends.sse import Event
from backends.upstream import Endings, broken, failure

_FINISHES: Mapping[str, Finish] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class Events:
    """Reads the events of one answer."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._endings = Endings({0})
        self._tool_calls = 0
        self._needs_arguments = False  # a tool call has begun and nothing of its input has come
        self.is_over = False
        self.has_spoken = False

    def read(self, event: Event) -> Iterator[Delta]:
        """Read one event."""
        body = parsed(event.data)
        match text(body, "type") or event.kind.decode(errors="replace"):
            case "message_start":
                yield from self._counts(child(child(body, "message"), "usage"))
            case "content_block_start":
                yield from self._start(child(body, "content_block"))
            case "content_block_delta":
                yield from self._piece(child(body, "delta"))
            case "content_block_stop":
                yield from self._stop()
            case "message_delta":
                yield from self._finish(child(body, "delta"), child(body, "usage"))
            case "message_stop":
                yield from self.end()
            case "error":
                raise failure(body, has_spoken=self.has_spoken)
            case "":
                raise broken("sent an event that is not a JSON object with a type", has_spoken=self.has_spoken)

    def read_whole(self, body: Json) -> Iterator[Delta]:
        """Read a whole message."""
        if text(body, "type") == "error":
            raise failure(body, has_spoken=self.has_spoken)
        for block in children(body, "content"):
            yield from self._start(block)
            yield from self._stop()
        yield from self._finish(body, child(body, "usage"))

    def end(self) -> Iterator[Delta]:
        """Give the end; a stream that just stops before one was cut."""
        if not self.is_over:
            self.is_over = True
            yield from self._endings.release(has_spoken=self.has_spoken)

    def _counts(self, told: Json) -> Iterator[Delta]:
        self._endings.usage = _usage(told, None)
        if self._endings.usage is not None:
            yield Delta(usage=self._endings.usage)

    def _start(self, block: Json) -> Iterator[Delta]:
        if text(block, "type") == "tool_use":
            given = child(block, "input")
            self._needs_arguments = not given
            index, self._tool_calls = self._tool_calls, self._tool_calls + 1
            arguments = orjson.dumps(given).decode() if given else ""
            tool_id = text(block, "id") or f"toolu_{self._call.id}_{index}"
            yield self._said(tool=ToolCallDelta(index, tool_id, text(block, "name"), arguments))
        elif text(block, "type") == "thinking":
            yield from self._thought(block)
        elif said := text(block, "text"):
            yield self._said(said)

    def _thought(self, said: Json) -> Iterator[Delta]:
        reasoning, signature = text(said, "thinking"), text(said, "signature")
        if reasoning or signature:
            self.has_spoken = True
            yield Delta(tokens=1 if reasoning else 0, reasoning=reasoning, signature=signature)

    def _piece(self, delta: Json) -> Iterator[Delta]:
        if said := text(delta, "text"):
            yield self._said(said)
        elif arguments := text(delta, "partial_json"):
            if not self._tool_calls:
                raise broken("sent a piece of a tool call that has not begun", has_spoken=self.has_spoken)
            self._needs_arguments = False
            yield self._said(tool=ToolCallDelta(self._tool_calls - 1, arguments=arguments))
        else:
            yield from self._thought(delta)

    def _stop(self) -> Iterator[Delta]:
        """Give a tool call without input the arguments that other APIs expect."""
        if self._needs_arguments:
            self._needs_arguments = False
            yield self._said(tool=ToolCallDelta(self._tool_calls - 1, arguments="{}"))

    def _finish(self, delta: Json, told: Json) -> Iterator[Delta]:
        self._endings.usage = _usage(told, self._endings.usage) or self._endings.usage
        if reason := text(delta, "stop_reason"):
            self.has_spoken = True
            stop = text(delta, "stop_sequence") or None
            yield from self._endings.finish(Delta(finish=_FINISHES.get(reason, "stop"), stop=stop))

    def _said(self, said: str = "", tool: ToolCallDelta | None = None) -> Delta:
        self.has_spoken = True
        return Delta(text=said, tokens=1, tool_calls=() if tool is None else (tool,))


def _usage(told: Json, earlier: Usage | None) -> Usage | None:
    """Read the counts, each a total so far; the prompt's are those computed, put into the cache and read from it."""
    if (computed := count(told, "input_tokens")) is None:
        if earlier is None:
            return None
        return Usage(earlier.prompt_tokens, count(told, "output_tokens") or 0, earlier.cached_tokens)
    cached = count(told, "cache_read_input_tokens") or 0
    prompt = computed + cached + (count(told, "cache_creation_input_tokens") or 0)
    return Usage(prompt, count(told, "output_tokens") or 0, cached)
