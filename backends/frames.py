"""The wire between gateway and worker, sans-IO: frames to bytes and back, and what travels in them.

A frame is `u32 big-endian length | JSON array [tag, …]`.
To the worker: `submit <call>`, `cancel id`, `hold id`, `resume id`, `tokenize number <call>`, `detokenize number
[token, …]`, `embed number <call>`, `drain`.
To the gateway: `loading what fraction`, `hello {…}`, `step [[id, index, text, tokens, finish, extra|null], …]` (one
frame a step for all calls of a connection), `error id {…}`, `told number ANSWER|{error}` to a question, `stats {…}`.

Refuses to know sockets, processes and the order of frames.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import orjson

from backends.api import BackendError, Call, Delta, Embedding
from backends.wire import rebuild

SUBMIT_LIMIT_BYTES = 64 << 20
ANSWER_LIMIT_BYTES = 16 << 20
PROTOCOL = 1

Frame = list[Any]
Kind = TypeVar("Kind")
_CALL_FIELDS = tuple(f.name for f in fields(Call) if f.name not in {"body", "traceparent"})
_DELTA_FIELDS = ("index", "text", "tokens", "finish")
_EXTRA_FIELDS = ("logprobs", "tool_calls", "usage", "stop", "reasoning", "signature")
_ERROR_FIELDS = ("kind", "message", "retryable", "code", "param", "retry_after_s")


class FrameError(Exception):
    """The peer does not speak this protocol; its connection is of no use any more."""


def encode(*frame: object) -> bytes:
    """Write one frame."""
    body = orjson.dumps(frame)
    return len(body).to_bytes(4, "big") + body


class FrameReader:
    """Bytes in, frames out, however the bytes were split. Keeps at most one frame of `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._pending = bytearray()

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete now; exhaust it before feeding again."""
        self._pending += received
        start = 0
        while (end := self._end(start)) is not None and end <= len(self._pending):
            yield _parse(bytes(self._pending[start + 4 : end]))
            start = end
        del self._pending[:start]

    def _end(self, start: int) -> int | None:
        if len(self._pending) < start + 4:
            return None
        length = int.from_bytes(self._pending[start : start + 4], "big")
        if length > self._limit:
            raise FrameError(f"a frame of {length} bytes is over the limit of {self._limit}")
        return start + 4 + length


def _parse(body: bytes) -> Frame:
    try:
        frame = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise FrameError(f"a frame of {len(body)} bytes is not JSON: {exc}") from exc
    if not isinstance(frame, list) or not frame or not isinstance(frame[0], str):
        raise FrameError("a frame must be an array that begins with its tag")
    return frame


def pack_call(call: Call) -> dict[str, object]:
    """Turn a call into its wire form; the body as it was sent stays behind."""
    return {name: getattr(call, name) for name in _CALL_FIELDS}


def unpack_call(wire: object) -> Call:
    """Rebuild a call."""
    return _rebuild(Call, wire)


def pack_delta(call_id: str, delta: Delta) -> tuple[object, ...]:
    """Turn a delta into its entry of a `step` frame."""
    extra = {name: value for name in _EXTRA_FIELDS if (value := getattr(delta, name))}
    return call_id, delta.index, delta.text, delta.tokens, delta.finish, extra or None


def unpack_delta(entry: list[Any]) -> Delta:
    """Rebuild a delta from its entry of a `step` frame."""
    if len(entry) != len(_DELTA_FIELDS) + 2:
        raise FrameError(f"a delta has {len(_DELTA_FIELDS) + 2} members, not {len(entry)}")
    _, *plain, extra = entry
    if not extra:
        return Delta(*plain)
    return _rebuild(Delta, {**dict(zip(_DELTA_FIELDS, plain, strict=True)), **extra})


def pack_embedding(embedding: Embedding) -> list[object]:
    """Turn vectors into the answer to an `embed`."""
    return [embedding.prompt_tokens, [b64encode(vector).decode() for vector in embedding.vectors]]


def unpack_embedding(wire: object) -> Embedding:
    """Rebuild vectors."""
    match wire:
        case [int(tokens), list(vectors)]:
            return Embedding(tuple(map(b64decode, vectors)), tokens)
    raise FrameError("vectors do not have the expected form")


def pack_error(error: BackendError) -> dict[str, object]:
    """Turn an error into its wire form."""
    return {name: getattr(error, name) for name in _ERROR_FIELDS}


def unpack_error(wire: Mapping[str, Any]) -> BackendError:
    """Rebuild an error."""
    try:
        return BackendError(**wire)
    except TypeError as exc:
        raise FrameError(f"an error does not have the expected form: {exc}") from exc


def _rebuild(kind: type[Kind], wire: object) -> Kind:
    try:
        return rebuild(kind, wire)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise FrameError(f"a {kind.__name__.lower()} does not have the expected form: {exc!r}") from exc
