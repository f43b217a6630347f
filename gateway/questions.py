"""What can be asked about tokens: the exact count of a prompt, its tokens, and the text of tokens.

A replica knows the answer at once and computes nothing for it. Refuses to know how a replica is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import orjson

from backends.api import Backend, Call, Usage
from gateway.dialects import Endpoint
from gateway.dialects.anthropic import TokenCount
from gateway.dialects.fields import Fields, as_integer, parse_object
from gateway.dialects.openai import Chat, error
from gateway.refusal import Refusal

_TOKEN_MAX = (1 << 31) - 1
_MAX_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """The body of an answer, and what it has cost if it has cost anything."""

    body: bytes
    usage: Usage | None = None


class Question(Endpoint, Protocol):
    """An endpoint whose calls no model computes for: a backend knows the answer."""

    async def ask(self, call: Call, backend: Backend) -> Told:
        """Give the answer; raises BackendError."""
        ...


class CountTokens(TokenCount):
    """`POST /v1/messages/count_tokens`."""

    async def ask(self, call: Call, backend: Backend) -> Told:
        """Say how many tokens the prompt has."""
        return Told(self.counted(sum(map(len, await backend.tokenize(call)))))


class Tokenize:
    """`POST /tokenize`, as vLLM has it: a text, or the messages of a chat."""

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read a prompt; options that would make it another one than a call's are refused."""
        fields = parse_object(body)
        fields.unsupported("return_token_strs", unless=(False,))
        if fields.has("messages"):
            _check_chat(fields)
            return replace(Chat().parse(body, call_id=call_id, tenant=tenant), stream=False)
        fields.unsupported("add_special_tokens", unless=(True,))
        prompt = fields.required_text("prompt")
        return Call(call_id, fields.required_text("model"), prompts=(prompt,), tenant=tenant, body=fields.values)

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Write a refusal in OpenAI's shape, as vLLM does."""
        return error(refusal, request_id)

    async def ask(self, call: Call, backend: Backend) -> Told:
        """Say the tokens, how many there are and how many there may be."""
        (tokens,) = await backend.tokenize(call)
        window = (await backend.health()).context_tokens
        return Told(orjson.dumps({"count": len(tokens), "max_model_len": window, "tokens": tokens, "token_strs": None}))


class Detokenize:
    """`POST /detokenize`, as vLLM has it."""

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read the tokens."""
        fields = parse_object(body)
        fields.require("tokens")
        items = fields.array("tokens", longest=_MAX_TOKENS)
        tokens = tuple(as_integer(item, f"tokens[{i}]", low=0, high=_TOKEN_MAX) for i, item in enumerate(items))
        return Call(call_id, fields.required_text("model"), prompts=(tokens,), tenant=tenant, body=fields.values)

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Write a refusal in OpenAI's shape, as vLLM does."""
        return error(refusal, request_id)

    async def ask(self, call: Call, backend: Backend) -> Told:
        """Say the text."""
        (tokens,) = call.prompts
        return Told(orjson.dumps({"prompt": await backend.detokenize([int(token) for token in tokens])}))


def _check_chat(fields: Fields) -> None:
    fields.unsupported("add_special_tokens", unless=(False,))
    fields.unsupported("add_generation_prompt", unless=(True,))
    fields.unsupported("continue_final_message", unless=(False,))
    fields.unsupported("chat_template")
