"""OpenAI's chat completions and completions: request bodies into a `Call`, refusals into OpenAI's error shape.

Refuses to know how answers are written; `openai_answers` does.
"""

from __future__ import annotations

from dataclasses import replace

import orjson

from backends.api import Call, Message, Role, Sampling, ToolCall
from gateway.dialects import Answer
from gateway.dialects.events import COMMENT
from gateway.dialects.fields import Fields, as_integer, as_text, parse_object, quoted, refusal
from gateway.dialects.openai_answers import ChatAnswer, CompletionAnswer, error_body
from gateway.dialects.tools import chat_format, chat_tools
from gateway.refusal import Refusal

_ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool")
_TEXT_PARTS = ("text", "refusal")
_MAX_MESSAGES = 16_384
_MAX_SEQUENCES = 128
_MAX_STOPS = 64
_MAX_BIASES = 4096
_INTEGER_MAX = (1 << 31) - 1
_SEED_MAX = (1 << 63) - 1
_COMPLETION_TOKENS = 16  # what OpenAI answers when a completion names no limit


class Chat:
    """`POST /v1/chat/completions`."""

    ping = COMMENT

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read a chat request."""
        fields = parse_object(body)
        _refuse_what_is_not_text(fields)
        fields.require("messages")
        messages = tuple(_message(each) for each in fields.objects("messages", longest=_MAX_MESSAGES))
        if not messages:
            raise refusal("messages", "is empty; at least one message is required")
        max_tokens = _token_limit(fields, "max_completion_tokens") or _token_limit(fields, "max_tokens")
        tools = chat_tools(fields)
        call = replace(
            _call(fields, call_id, tenant),
            dialect="chat",
            messages=messages,
            max_tokens=max_tokens,
            logprobs=_chat_logprobs(fields),
            tools=tools.tools,
            tool_choice=tools.choice,
            parallel_tool_calls=tools.parallel,
            thinking=_thinking(fields),
        )
        return _consistent(call)

    def answer(self, call: Call, *, now: float) -> Answer:
        """Prepare the chunks or the body of a chat completion."""
        return ChatAnswer(call, now=now)

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Write a refusal; OpenAI puts the request id into the headers only."""
        return error(refusal, request_id)


class Completions:
    """`POST /v1/completions`."""

    ping = COMMENT

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read a completion request."""
        fields = parse_object(body)
        fields.unsupported("echo", unless=(False,))
        fields.unsupported("suffix", unless=("",))
        fields.unsupported("best_of", unless=(fields.integer("n", 1, low=1, high=_MAX_SEQUENCES),))
        max_tokens = _token_limit(fields, "max_tokens") or _COMPLETION_TOKENS
        logprobs = fields.integer("logprobs", None, low=0, high=20)
        call = replace(_call(fields, call_id, tenant), prompts=prompts(fields, "prompt"), max_tokens=max_tokens)
        return _consistent(replace(call, logprobs=logprobs, dialect="completions"))

    def answer(self, call: Call, *, now: float) -> Answer:
        """Prepare the chunks or the body of a text completion."""
        return CompletionAnswer(call, now=now)

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Write a refusal; OpenAI puts the request id into the headers only."""
        return error(refusal, request_id)


def error(refusal: Refusal, request_id: str) -> tuple[int, bytes]:
    """Write a refusal in the shape of every OpenAI endpoint."""
    del request_id
    return refusal.status, orjson.dumps(error_body(refusal))


def _call(fields: Fields, call_id: str, tenant: str) -> Call:
    """Read what both endpoints share."""
    return Call(
        id=call_id,
        model=fields.required_text("model"),
        sampling=_sampling(fields),
        min_tokens=fields.integer("min_tokens", 0, low=0, high=_INTEGER_MAX),
        ignore_eos=fields.flag("ignore_eos"),
        stop=_stop(fields),
        choices=fields.integer("n", 1, low=1, high=_MAX_SEQUENCES),
        stream=fields.flag("stream"),
        include_usage=fields.child("stream_options").flag("include_usage"),
        response_format=chat_format(fields),
        tenant=tenant,
        body=fields.values,
    )


def _refuse_what_is_not_text(fields: Fields) -> None:
    """Refuse other kinds of answers, checks that are not made, and the tools of before `tools`."""
    for name in ("audio", "function_call", "functions", "moderation", "web_search_options"):
        fields.unsupported(name)
    fields.unsupported("modalities", unless=(["text"],))


def _consistent(call: Call) -> Call:
    """Refuse what is allowed field by field but not together."""
    if call.sequences > _MAX_SEQUENCES:
        raise refusal("n", f"and prompt ask for {call.sequences} answers; at most {_MAX_SEQUENCES} are given at once")
    if call.max_tokens is not None and call.min_tokens > call.max_tokens:
        raise refusal("min_tokens", f"is {call.min_tokens}, more than max_tokens = {call.max_tokens}")
    return call


def _sampling(fields: Fields) -> Sampling:
    return Sampling(
        temperature=fields.number("temperature", 1.0, low=0, high=2),
        top_p=fields.number("top_p", 1.0, low=0, high=1),
        top_k=max(0, fields.integer("top_k", 0, low=-1, high=_INTEGER_MAX)),  # -1 is off, as vLLM writes it
        min_p=fields.number("min_p", 0.0, low=0, high=1),
        presence_penalty=fields.number("presence_penalty", 0.0, low=-2, high=2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, low=-2, high=2),
        repetition_penalty=fields.number("repetition_penalty", 1.0, low=0.01, high=100),
        seed=fields.integer("seed", None, low=-_SEED_MAX - 1, high=_SEED_MAX),
        logit_bias=_logit_bias(fields.child("logit_bias")),
    )


def _logit_bias(biases: Fields) -> tuple[tuple[int, float], ...]:
    if len(biases.values) > _MAX_BIASES:
        raise refusal(biases.path, f"has {len(biases.values)} tokens; at most {_MAX_BIASES} are allowed")
    return tuple((_token_id(name, biases.path), biases.number(name, 0.0, low=-100, high=100)) for name in biases.values)


def _token_id(name: str, path: str) -> int:
    if name.isascii() and name.isdecimal() and int(name[:12]) <= _INTEGER_MAX:
        return int(name)
    raise refusal(path, f"has the key {quoted(name)}; its keys are token ids")


def _token_limit(fields: Fields, name: str) -> int | None:
    return fields.integer(name, None, low=1, high=_INTEGER_MAX)


def _stop(fields: Fields) -> tuple[str, ...]:
    stop = fields.values.get("stop")
    texts = [stop] if isinstance(stop, str) else fields.array("stop", longest=_MAX_STOPS)
    stops = tuple(as_text(text, f"stop[{i}]") for i, text in enumerate(texts))
    if "" in stops:
        raise refusal("stop", "holds an empty string, which would stop every answer at once")
    return stops


def _thinking(fields: Fields) -> bool | None:
    """Return whether the model is to think, as vLLM's clients say it, or OpenAI's; any effort but none is its own."""
    wishes = fields.child("chat_template_kwargs")
    for name in ("enable_thinking", "thinking"):
        if wishes.has(name):
            return wishes.flag(name)
    return False if fields.text("reasoning_effort", None) == "none" else None


def _chat_logprobs(fields: Fields) -> int | None:
    """Return how many alternatives to tell for each token, None when not even its own logprob is wanted."""
    top = fields.integer("top_logprobs", 0, low=0, high=20)
    if fields.flag("logprobs"):
        return top
    if top:
        raise refusal("top_logprobs", "needs logprobs = true")
    return None


def _message(fields: Fields) -> Message:
    role = fields.choice("role", _ROLES)
    tool_calls = tuple(_tool_call(each) for each in fields.objects("tool_calls", longest=_MAX_SEQUENCES))
    if role != "assistant":
        fields.require("content")
    if role == "tool":
        fields.required_text("tool_call_id")
    return Message(
        role,
        _content(fields),
        name=fields.text("name", None),
        tool_calls=tool_calls,
        tool_call_id=fields.text("tool_call_id", None),
    )


def _content(fields: Fields) -> str:
    """Return a message's text; the text parts of an array become its lines."""
    content = fields.values.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise refusal(fields.path_of("content"), "must be a string or an array of parts", code="invalid_type")
    return "\n".join(_part(part) for part in fields.objects("content", longest=_MAX_MESSAGES))


def _part(part: Fields) -> str:
    kind = as_text(part.values.get("type"), part.path_of("type"))
    if kind in _TEXT_PARTS:
        part.require(kind)
        return part.text(kind, "")
    raise refusal(
        part.path_of("type"),
        f"is {quoted(kind)}; the models here read text only, so send parts of the type text",
        code="unsupported_value",
    )


def _tool_call(fields: Fields) -> ToolCall:
    fields.unsupported("type", unless=("function",))
    function = fields.child("function")
    return ToolCall(fields.required_text("id"), function.required_text("name"), function.text("arguments", ""))


def prompts(fields: Fields, name: str) -> tuple[str | tuple[int, ...], ...]:
    """Return texts to compute with: one string, one array of token ids, or an array of either."""
    fields.require(name)
    prompt = fields.values[name]
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list):
        raise refusal(name, "must be a string, an array of strings, or arrays of token ids", code="invalid_type")
    if not prompt:
        raise refusal(name, "is empty; give a text or token ids")
    if type(prompt[0]) is int:
        return (_token_ids(prompt, name),)
    return tuple(_prompt(each, f"{name}[{i}]") for i, each in enumerate(prompt))


def _prompt(prompt: object, path: str) -> str | tuple[int, ...]:
    return _token_ids(prompt, path) if isinstance(prompt, list) else as_text(prompt, path)


def _token_ids(items: list[object], path: str) -> tuple[int, ...]:
    if not items:
        raise refusal(path, "is empty; give a text or token ids")
    return tuple(as_integer(item, f"{path}[{i}]", low=0, high=_INTEGER_MAX) for i, item in enumerate(items))
