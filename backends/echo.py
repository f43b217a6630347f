"""A deterministic backend without a model: says the last user message again, word by word; a word is a token.

A message can ask for trouble by a first word, so that clients and the gateway itself can be tried against it:
`echo:error` fails before the first token and `echo:error=3` after three; `echo:overloaded` and `echo:rejected` refuse;
`echo:stall=3` says three words and then nothing until the call is cancelled; `echo:repeat=100` says the rest 100 times;
`echo:think=3` thinks three words and says the rest, or says all where nothing can be thought.

Where a tool must be called, it calls it: the message is its arguments if it is a JSON object, else their `text`.

Refuses to know time and randomness.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import orjson

from backends.api import BackendError, Call, Delta, Embedding, Finish, Health, ToolCallDelta, Usage, unable
from backends.stops import StopText

CONTEXT_TOKENS = 1 << 20
_WORD = re.compile(r"\s*\S+|\s+$")
_DIRECTIVE = re.compile(r"echo:(error|overloaded|rejected|stall|repeat|think)(?:=([0-9]{1,6}))?\s*")


@dataclass(frozen=True, slots=True)
class Script:
    """What the echo of one message will do; `limit` is the number of words after which `trouble` begins.

    The first `thoughts` of the words are thought, not said, if the call lets it think.
    """

    words: tuple[str, ...]
    trouble: str = ""
    limit: int = 0
    thoughts: int = 0


def script(text: str) -> Script:
    """Read the directive in front of a message, if there is one."""
    if (match := _DIRECTIVE.match(text)) is None:
        return Script(tuple(_WORD.findall(text)))
    rest, number = text[match.end() :], int(match[2] or 0)
    if match[1] == "repeat":
        return Script(tuple(_WORD.findall(" ".join([rest] * number))))
    if match[1] == "think":
        return Script(tuple(_WORD.findall(rest)), thoughts=number)
    return Script(tuple(_WORD.findall(rest)), match[1], number)


class EchoBackend:
    """Answers at once and keeps nothing between calls but their number."""

    def __init__(self, model: str = "echo", *, context_tokens: int = CONTEXT_TOKENS) -> None:
        self._model, self._context_tokens = model, context_tokens
        self._running = 0

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        """Say each prompt's last user message again, the answers one after the other."""
        self._running += 1
        try:
            async with aclosing(self._stream(call)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._running -= 1

    async def tokenize(self, call: Call) -> list[list[int]]:
        """Give the words of each prompt numbers as ids, as there is no vocabulary."""
        return [list(range(words)) for words in _prompt_words(call)]

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Say the ids, as the echo of a prompt of ids does."""
        return " ".join(map(str, token_ids))

    async def embed(self, call: Call) -> Embedding:
        """Refuse: words that are only repeated have no meaning here."""
        del call
        raise unable("make embeddings")

    async def health(self) -> Health:
        """Report ready, always."""
        return Health(ready=True, running=self._running, slots=256, context_tokens=self._context_tokens)

    async def close(self) -> None:
        """Nothing to free."""

    async def _stream(self, call: Call) -> AsyncGenerator[Delta]:
        prompts = _prompts(call)
        counts = Usage(sum(_prompt_words(call)), 0)
        if counts.prompt_tokens >= self._context_tokens:
            raise _too_long(call, counts.prompt_tokens, self._context_tokens)
        tool = _forced_tool(call)
        scripts = [
            (script(prompt if tool is None else _arguments(prompt)), index)
            for index, prompt in enumerate(p for p in prompts for _ in range(call.choices))
        ]
        _refuse(scripts[0][0])
        yield Delta(usage=counts)
        spoken = 0
        for lines, index in scripts:
            for delta in _speak(call, lines, index) if tool is None else _call_tool(call, lines, index, tool):
                spoken += delta.tokens
                is_last = delta.finish is not None and index == len(scripts) - 1
                await asyncio.sleep(0)  # a turn for everybody else: a long echo must not starve the loop
                usage = Usage(counts.prompt_tokens, spoken) if is_last else None
                yield replace(delta, usage=usage)
            if lines.trouble == "stall":
                await asyncio.Event().wait()


def _speak(call: Call, lines: Script, index: int) -> Iterator[Delta]:
    """Turn a script into deltas, the last with its finish; a stall ends without one."""
    stops, thoughts = StopText(call.stop), lines.thoughts if _may_think(call) else 0
    allowed = len(lines.words) if call.max_tokens is None else min(call.max_tokens, len(lines.words))
    for spoken, word in enumerate(lines.words[:allowed], start=1):
        if lines.trouble and spoken > lines.limit:
            break
        if spoken <= thoughts:
            yield Delta(index, tokens=1, reasoning=word)
            continue
        text = stops.push(word.lstrip() if spoken == thoughts + 1 > 1 else word)
        if stops.is_hit:
            yield Delta(index, text, 1, "stop", stop=stops.hit)
            return
        yield Delta(index, text, 1)
    if lines.trouble == "error":
        raise BackendError("broken", f"echo:error asked for a failure after {lines.limit} words")
    if lines.trouble != "stall":
        finish: Finish = "stop" if allowed == len(lines.words) else "length"
        yield Delta(index, stops.flush(), 0, finish)


def _call_tool(call: Call, lines: Script, index: int, name: str) -> Iterator[Delta]:
    """Say the script as the arguments of a tool."""
    yield Delta(index, tool_calls=(ToolCallDelta(0, f"call_{call.id}_{index}", name),))
    for delta in _speak(call, lines, index):
        pieces = (ToolCallDelta(0, arguments=delta.text),) if delta.text else ()
        yield replace(
            delta, text="", tool_calls=pieces, finish="tool_calls" if delta.finish == "stop" else delta.finish
        )


def _may_think(call: Call) -> bool:
    return call.thinking is not False and not call.prompts and _forced_tool(call) is None


def _forced_tool(call: Call) -> str | None:
    return (call.tool_choice.name or call.tools[0].name) if call.tool_choice.mode == "required" else None


def _arguments(text: str) -> str:
    """Write a message as the arguments of a tool; a directive stays in front."""
    directive = match[0] if (match := _DIRECTIVE.match(text)) else ""
    rest = text[len(directive) :]
    return directive + (rest if rest.startswith("{") else orjson.dumps({"text": rest}).decode())


def _refuse(lines: Script) -> None:
    if lines.trouble == "error" and not lines.limit:
        raise BackendError("unreachable", "echo:error asked for a failure before the first word", retryable=True)
    if lines.trouble == "overloaded":
        raise BackendError("overloaded", "echo:overloaded asked for this refusal", retryable=True, retry_after_s=1.0)
    if lines.trouble == "rejected":
        raise BackendError("rejected", "echo:rejected asked for this refusal", code="echo_rejected", param=None)


def _prompts(call: Call) -> list[str]:
    if call.prompts:
        return [p if isinstance(p, str) else " ".join(map(str, p)) for p in call.prompts]
    return [next((m.text for m in reversed(call.messages) if m.role == "user"), "")]


def _prompt_words(call: Call) -> list[int]:
    """Count the words of each prompt; a chat is one."""
    if call.prompts:
        return [len(_WORD.findall(text)) for text in _prompts(call)]
    return [sum(len(_WORD.findall(message.text)) for message in call.messages)]


def _too_long(call: Call, prompt_tokens: int, context_tokens: int) -> BackendError:
    return BackendError(
        "rejected",
        f"the prompt has {prompt_tokens} tokens, but the model's context is {context_tokens}; shorten it",
        code="context_length_exceeded",
        param="prompt" if call.prompts else "messages",
    )
