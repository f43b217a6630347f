"""`POST /v1/embeddings`: texts, or tokens, as vectors of what they mean. Refuses to know how a replica is found."""

from __future__ import annotations

import struct
from base64 import b64encode

import orjson

from backends.api import Backend, Call, Embedding, Usage
from gateway.dialects import openai
from gateway.dialects.fields import parse_object, refusal
from gateway.questions import Told
from gateway.refusal import Refusal

_MOST_INPUTS = 2048
_MOST_DIMENSIONS = 65_536


class Embeddings:
    """See `questions.Question`. The vectors are written as numbers, or as base64, which the SDKs ask for."""

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read what is to be embedded."""
        fields = parse_object(body)
        if fields.has("encoding_format"):
            fields.choice("encoding_format", ("float", "base64"))
        inputs = openai.prompts(fields, "input")
        if len(inputs) > _MOST_INPUTS:
            raise refusal("input", f"has {len(inputs)} items; at most {_MOST_INPUTS} are allowed")
        return Call(
            call_id,
            fields.required_text("model"),
            prompts=inputs,
            dimensions=fields.integer("dimensions", None, low=1, high=_MOST_DIMENSIONS),
            tenant=tenant,
            dialect="embeddings",
            body=fields.values,
        )

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Write a refusal."""
        return openai.error(refusal, request_id)

    async def ask(self, call: Call, backend: Backend) -> Told:
        """Give the vectors in the order of the inputs."""
        embedding = await backend.embed(call)
        as_base64 = call.body.get("encoding_format") == "base64"
        body = orjson.dumps(_answer(call.model, embedding, as_base64=as_base64))
        return Told(body, Usage(embedding.prompt_tokens, 0))


def _answer(model: str, embedding: Embedding, *, as_base64: bool) -> dict[str, object]:
    entries = [
        {"object": "embedding", "index": i, "embedding": b64encode(each).decode() if as_base64 else _numbers(each)}
        for i, each in enumerate(embedding.vectors)
    ]
    usage = {"prompt_tokens": embedding.prompt_tokens, "total_tokens": embedding.prompt_tokens}
    return {"object": "list", "data": entries, "model": model, "usage": usage}


def _numbers(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
