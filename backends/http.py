"""Any server with an OpenAI- or Anthropic-compatible API as a backend.

Refuses to know what the server's API looks like; `upstream.py` does. Nothing of the client's own headers is passed on
but its trace.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from backends.anthropic_upstream import AnthropicUpstream
from backends.api import BackendError, Call, Delta, Embedding, Health, unable
from backends.http_body import Body
from backends.http_client import Client, Server
from backends.http_watch import Changed, Watch
from backends.lenient import Json, child, children, count, parsed, text, vector_of
from backends.openai_upstream import OpenAIUpstream
from backends.sse import EventReader, SseError
from backends.upstream import NOT_FOUND, Post, UpstreamAnswer, UpstreamDialect, broken

__all__ = ["HttpBackend", "Server"]

_EVENT_LIMIT_BYTES = 16 << 20
_WHOLE_LIMIT_BYTES = 64 << 20
_DIALECTS: dict[str, UpstreamDialect] = {"openai": OpenAIUpstream(), "anthropic": AnthropicUpstream()}


class HttpBackend:
    """See `api.Backend`. `watch` has to run beside it, else it is never ready."""

    def __init__(self, server: Server, changed: Changed = lambda _state, _reason: None) -> None:
        self._model, self._models_url = server.model, f"{server.url}/models"
        self._dialect = _DIALECTS[server.dialect]
        self._watch = Watch(server.model, server.context_tokens, changed)
        self._client = Client(server, self._dialect.headers(server.api_key), self._watch.suspect)
        self._running = 0

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        """See `api.Backend`; the connection is closed with it, which is how a server hears that nobody listens."""
        post, answer = self._dialect.post(call, self._model), self._dialect.answer(call)
        headers = {"x-request-id": call.id} | ({"traceparent": call.traceparent} if call.traceparent else {})
        self._running += 1
        try:
            with self._client.translated(lambda: answer.has_spoken):
                async with self._client.posted(post, headers) as body, aclosing(_deltas(body, answer)) as deltas:
                    async for delta in deltas:
                        yield delta
        finally:
            self._running -= 1

    async def tokenize(self, call: Call) -> list[Sequence[int]]:
        """See `api.Backend`; a server that only counts tokens gives numbers in place of their ids."""
        calls = [replace(call, prompts=(prompt,)) for prompt in call.prompts] or [call]
        return [await self._tokens(each) for each in calls]

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `api.Backend`."""
        told = await self._told(self._dialect.detokenize(token_ids, self._model), "turn tokens into text")
        return text(told, "prompt")

    async def embed(self, call: Call) -> Embedding:
        """See `api.Backend`."""
        told = await self._told(self._dialect.embed(call, self._model), "make embeddings")
        entries = sorted(children(told, "data"), key=lambda entry: count(entry, "index") or 0)
        vectors = tuple(vector_of(entry.get("embedding")) for entry in entries)
        if len(vectors) != len(call.prompts) or not all(vectors):
            raise broken("sent other vectors than were asked for", has_spoken=False)
        return Embedding(vectors, count(child(told, "usage"), "prompt_tokens") or 0)

    async def health(self) -> Health:
        """See `api.Backend`; found out by `watch`."""
        watch = self._watch
        return Health(watch.is_ready, self._running, context_tokens=watch.context_tokens, is_down=watch.is_down)

    async def watch(self) -> None:
        """Find out, for as long as it runs, whether the server is there."""
        await self._watch.run(self._client.session(), self._models_url, self._client.headers)

    async def close(self) -> None:
        """See `api.Backend`."""
        await self._client.close()

    async def _tokens(self, call: Call) -> Sequence[int]:
        """Return the tokens of a chat, or of the one prompt that the call has."""
        for prompt in call.prompts:
            if not isinstance(prompt, str):
                return prompt
        what = "tell the tokens of a text"
        if tokens := self._dialect.tokens(await self._told(self._dialect.tokenize(call, self._model), what)):
            return tokens
        raise unable(what)

    async def _told(self, post: Post, what: str) -> Json:
        """Return a whole answer, or refuse what this server cannot do."""
        try:
            with self._client.translated():
                async with self._client.posted(post, {"x-request-id": uuid.uuid4().hex}) as body:
                    return parsed(await body.whole(_WHOLE_LIMIT_BYTES))
        except BackendError as exc:
            if exc.code == NOT_FOUND:
                raise unable(what) from exc
            raise


async def _deltas(body: Body, answer: UpstreamAnswer) -> AsyncGenerator[Delta]:
    """Read the answer: a stream of events, or all of it at once from a server that cannot stream."""
    match body.content_type:
        case "application/json":
            for delta in answer.read_whole(parsed(await body.whole(_WHOLE_LIMIT_BYTES))):
                yield delta
        case "text/html":
            raise broken("answers with a page of HTML; is its url right?", has_spoken=False)
        case _:
            async for delta in _streamed(body, answer):
                yield delta
    for delta in answer.end():
        yield delta


async def _streamed(body: Body, answer: UpstreamAnswer) -> AsyncIterator[Delta]:
    reader = EventReader(_EVENT_LIMIT_BYTES)
    try:
        while not answer.is_over and (piece := await body.piece()):
            for event in reader.feed(piece):
                for delta in answer.read(event):
                    yield delta
    except SseError as exc:
        raise broken(f"sent something else than an answer: {exc}", has_spoken=answer.has_spoken) from exc
