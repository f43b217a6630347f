"""The chunks that an OpenAI-compatible server answers with, as deltas.

Servers that keep to the API loosely are understood, as long as nothing is lost: a missing index, id or usage, a last
chunk without a finish reason before the end mark, a whole body where a stream was asked for. What cannot be told from
an answer that was cut is an error.

Refuses to know sockets. A refusal is part of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from backends.api import Call, Delta, Finish, TokenLogprob, ToolCallDelta, Usage
from backends.lenient import Json, child, children, count, parsed, real, text
from backends.sse import Event
from backends.upstream import Endings, broken, failure

_DONE = b"[DONE]"
_FINISHES: Mapping[str, Finish] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_ABORTS = {"abort", "aborted", "error", "cancelled", "network_error", "insufficient_system_resource"}


@dataclass(slots=True)
class _ToolCalls:
    """The tool calls of one sequence so far; `key` is what the server calls the last one."""

    count: int = 0
    key: object = None


class Chunks:
    """Reads the chunks of one answer."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._tool_calls = [_ToolCalls() for _ in range(call.sequences)]
        self._endings = Endings(set(range(call.sequences)))
        self.is_over = False
        self.has_spoken = False

    def read(self, event: Event) -> Iterator[Delta]:
        """Read one chunk, or the end mark."""
        if event.data == _DONE:
            yield from self._done()
            return
        chunk = parsed(event.data)
        if not chunk:
            raise broken("sent an event that is not a JSON object", has_spoken=self.has_spoken)
        if event.kind == b"error":
            raise failure(chunk, has_spoken=self.has_spoken)
        yield from self.read_whole(chunk)

    def read_whole(self, body: Json) -> Iterator[Delta]:
        """Read a chunk, or a whole completion, which looks much the same."""
        if body.get("error") or body.get("object") == "error":
            raise failure(body, has_spoken=self.has_spoken)
        self._endings.usage = _usage(child(body, "usage")) or self._endings.usage
        for choice in children(body, "choices"):
            index = count(choice, "index") or 0
            if index >= self._call.sequences:
                raise broken(f"answers as choice {index}, which was not asked for", has_spoken=self.has_spoken)
            yield from self._choice(index, choice)

    def end(self) -> Iterator[Delta]:
        """Give the last end; a stream that just stops before one was cut."""
        if not self.is_over:
            self.is_over = True
            yield from self._endings.release(has_spoken=self.has_spoken)

    def _done(self) -> Iterator[Delta]:
        """End what the server forgot to end: it did say that all has been said."""
        for index in sorted(self._endings.unfinished) if self.has_spoken else ():
            yield from self._endings.finish(Delta(index, finish=self._natural(index, "stop")))
        yield from self.end()

    def _choice(self, index: int, choice: Json) -> Iterator[Delta]:
        said = child(choice, "delta") or child(choice, "message")
        spoken = text(said, "content") + text(said, "refusal") + text(choice, "text")
        reasoning = text(said, "reasoning_content") or text(said, "reasoning")  # some servers send both
        logprobs = _logprobs(child(choice, "logprobs"))
        pieces = tuple(self._tool_piece(index, each) for each in children(said, "tool_calls"))
        if spoken or reasoning or logprobs or pieces:
            self.has_spoken = True
            tokens = len(logprobs) or 1
            yield Delta(index, spoken, tokens, logprobs=logprobs, tool_calls=pieces, reasoning=reasoning)
        if reason := text(choice, "finish_reason"):
            yield from self._endings.finish(self._end_of(index, reason, choice))

    def _end_of(self, index: int, reason: str, choice: Json) -> Delta:
        if reason in _ABORTS:
            raise broken(f"gave up its answer ({reason})", has_spoken=self.has_spoken)
        self.has_spoken = True
        stop = text(choice, "stop_reason") or text(choice, "matched_stop")  # vLLM's and SGLang's names for it
        finish = self._natural(index, _FINISHES.get(reason, "stop"))
        return Delta(index, finish=finish, stop=stop if stop in self._call.stop else None)

    def _natural(self, index: int, finish: Finish) -> Finish:
        """Say "tool_calls" where a server says "stop" after it called one."""
        return "tool_calls" if finish == "stop" and self._tool_calls[index].count else finish

    def _tool_piece(self, index: int, piece: Json) -> ToolCallDelta:
        """Tell the pieces of one tool call from the first of the next: by index, else by id, else by its name."""
        calls, function = self._tool_calls[index], child(piece, "function")
        tool_id, name, arguments = text(piece, "id"), text(function, "name"), text(function, "arguments")
        key = count(piece, "index") if "index" in piece else tool_id or (name and f"#{calls.count}") or calls.key
        if calls.count and key == calls.key:
            return ToolCallDelta(calls.count - 1, arguments=arguments)
        if not name:
            raise broken("sent a piece of a tool call that has no name", has_spoken=self.has_spoken)
        calls.count, calls.key = calls.count + 1, key
        return ToolCallDelta(calls.count - 1, tool_id or f"call_{self._call.id}_{index}_{calls.count}", name, arguments)


def _usage(told: Json) -> Usage | None:
    prompt = count(told, "prompt_tokens")
    if prompt is None:
        return None
    cached = count(child(told, "prompt_tokens_details"), "cached_tokens") or 0
    return Usage(prompt, count(told, "completion_tokens") or 0, min(cached, prompt))


def _logprobs(told: Json) -> tuple[TokenLogprob, ...]:
    """Read both shapes: an array of objects in a chat, parallel arrays in a completion."""
    if "tokens" in told:
        return tuple(_parallel(told))
    return tuple(
        TokenLogprob(*_token(entry), tuple(_token(other) for other in children(entry, "top_logprobs")))
        for entry in children(told, "content")
    )


def _token(entry: Json) -> tuple[str, tuple[int, ...], float]:
    token, utf8 = text(entry, "token"), entry.get("bytes")
    return token, tuple(utf8) if isinstance(utf8, list) else tuple(token.encode()), real(entry, "logprob")


def _parallel(told: Json) -> Iterator[TokenLogprob]:
    tokens, logprobs, tops = (_column(told, name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    for i, token in enumerate(map(str, tokens)):
        logprob = {"p": logprobs[i]} if i < len(logprobs) else {}
        top = tops[i] if i < len(tops) else {}
        alternatives = {other: real(top, other) for other in top} if isinstance(top, dict) else {}
        yield TokenLogprob(
            token,
            tuple(token.encode()),
            real(logprob, "p"),
            tuple((other, tuple(other.encode()), p) for other, p in alternatives.items()),
        )


def _column(told: Json, name: str) -> list[object]:
    column = told.get(name)
    return column if isinstance(column, list) else []
