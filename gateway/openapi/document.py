"""The OpenAPI document of the data port: every path, what it takes, what it answers, and how it says no.

Refuses to know who answers; a test holds it to the routes and to docs/fields.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.openapi import answers, bodies
from gateway.openapi.jsonschema import ANY_OBJECT, TEXT, Schema, either

_REFUSALS = {
    400: "the request cannot be meant or done; the field is named",
    401: "no valid API key",
    404: "no such model, response or path",
    413: "the body is larger than max_body",
}
_EITHER_ERROR = either(answers.OPENAI_ERROR, answers.ANTHROPIC_ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one method of one path does; `api` is whose errors it has."""

    summary: str
    answer: Schema
    body: Schema | None = None
    is_streamed: bool = False
    needs_key: bool = True
    is_health: bool = False
    api: Literal["openai", "anthropic", "either"] = "openai"
    kind: str = "application/json"


_OPERATIONS: Mapping[str, Mapping[str, Operation]] = {
    "/chat/completions": {
        "post": Operation(summary="Chat", body=bodies.CHAT, answer=answers.CHAT, is_streamed=True),
    },
    "/completions": {
        "post": Operation(
            summary="Continue a text", body=bodies.COMPLETIONS, answer=answers.COMPLETION, is_streamed=True
        ),
    },
    "/responses": {
        "post": Operation(
            summary="Respond, and keep the response", body=bodies.RESPONSES, answer=answers.RESPONSE, is_streamed=True
        ),
    },
    "/responses/{id}": {
        "get": Operation(summary="Fetch a kept response", answer=answers.RESPONSE),
        "delete": Operation(summary="Forget a kept response", answer=answers.DELETED),
    },
    "/messages": {
        "post": Operation(
            summary="Chat, as Anthropic has it",
            body=bodies.MESSAGES,
            answer=answers.MESSAGE,
            is_streamed=True,
            api="anthropic",
        ),
    },
    "/messages/count_tokens": {
        "post": Operation(
            summary="Count a prompt's tokens", body=bodies.COUNT_TOKENS, answer=answers.COUNTED, api="anthropic"
        ),
    },
    "/embeddings": {
        "post": Operation(summary="Texts to vectors", body=bodies.EMBEDDINGS, answer=answers.EMBEDDINGS),
    },
    "/tokenize": {"post": Operation(summary="Text to tokens", body=bodies.TOKENIZE, answer=answers.TOKENIZED)},
    "/detokenize": {"post": Operation(summary="Tokens to text", body=bodies.DETOKENIZE, answer=answers.DETOKENIZED)},
    "/models": {"get": Operation(summary="List models", answer=answers.MODELS, api="either")},
    "/models/{id}": {"get": Operation(summary="Tell of one model", answer=answers.MODEL, api="either")},
    "/version": {"get": Operation(summary="Tell the version", answer=answers.VERSION, needs_key=False)},
    "/health": {
        "get": Operation(summary="Whether a replica serves", answer=answers.STATUS, needs_key=False, is_health=True)
    },
    "/healthz": {
        "get": Operation(summary="Whether the gateway runs", answer=answers.STATUS, needs_key=False, is_health=True)
    },
    "/readyz": {
        "get": Operation(summary="Whether a replica serves", answer=answers.STATUS, needs_key=False, is_health=True)
    },
    "/metrics": {"get": Operation(summary="Prometheus metrics", answer=TEXT, kind="text/plain")},
    "/openapi.json": {"get": Operation(summary="This document", answer=ANY_OBJECT, needs_key=False)},
}


def document(*, version: str) -> dict[str, object]:
    """Write the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate",
            "version": version,
            "summary": "Each path is there with and without /v1; unknown fields are accepted, and null is like absent",
        },
        "servers": [{"url": "/v1"}, {"url": "/"}],
        "paths": {path: _path(path, operations) for path, operations in _OPERATIONS.items()},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
        },
    }


def _path(path: str, operations: Mapping[str, Operation]) -> dict[str, object]:
    described: dict[str, object] = {method: _operation(operation) for method, operation in operations.items()}
    if "{id}" in path:
        described["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": TEXT}]
    return described


def _operation(operation: Operation) -> dict[str, object]:
    described: dict[str, object] = {"summary": operation.summary, "responses": _responses(operation)}
    described["security"] = [{"bearer": []}, {"key": []}, {}] if operation.needs_key else [{}]
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": operation.body}}}
    return described


def _responses(operation: Operation) -> dict[str, object]:
    content: dict[str, object] = {operation.kind: {"schema": operation.answer}}
    if operation.is_streamed:
        content["text/event-stream"] = {"schema": answers.EVENT}
    errors = {
        "openai": answers.OPENAI_ERROR,
        "anthropic": answers.ANTHROPIC_ERROR,
        "either": _EITHER_ERROR,
    }
    told = {"application/json": {"schema": errors[operation.api]}}
    if operation.is_health:
        return {"200": {"description": "yes", "content": content}, "503": {"description": "no", "content": content}}
    overload = 529 if operation.api == "anthropic" else 503
    refusals = {**_REFUSALS, overload: "no replica can take the call now; Retry-After says when"}
    return {
        "200": {"description": "done", "content": content},
        **{str(status): {"description": why, "content": told} for status, why in refusals.items()},
        "default": {"description": "refused", "content": told},
    }
