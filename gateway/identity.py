"""Which session a call belongs to: what clients send to say so, in the order in which it counts, within the tenant.

Refuses to know what a session holds. Ids of single requests (`x-client-request-id`, `traceparent`) never name one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.dialects.response_ids import thread_of

_LONGEST_ID = 256


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation of a tenant's; the same `id` of another tenant is another session.

    One id may carry unrelated prompts, such as the call that finds a title for the conversation.
    """

    tenant: str
    id: str


def session_of(headers: Mapping[str, str], body: Mapping[str, object], *, tenant: str) -> Session | None:
    """Return the session that a request names, None where only its prompt's beginning can tell."""
    named = next(_ids(headers, body), None)
    return Session(tenant, _bounded(named)) if named is not None else None


def _ids(headers: Mapping[str, str], body: Mapping[str, object]) -> Iterator[str]:
    """Yield every id that is given, the one that counts first."""
    candidates = (
        headers.get("x-session-id"),
        headers.get("x-session-affinity"),
        headers.get("session_id"),
        body.get("session_id"),
        body.get("prompt_cache_key"),
        _thread(body.get("previous_response_id")),
        _id_of(body.get("conversation")),
        headers.get("x-openwebui-chat-id"),
        _member(body.get("metadata"), "user_id"),
        body.get("user"),
    )
    yield from (given.strip() for given in candidates if isinstance(given, str) and given.strip())


def _thread(previous_id: object) -> str | None:
    """Return what all responses of one chain share, as each has an id of its own."""
    return thread_of(previous_id) if isinstance(previous_id, str) else None


def _id_of(conversation: object) -> object:
    return conversation if isinstance(conversation, str) else _member(conversation, "id")


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _bounded(given: str) -> str:
    """Return the id, or the digest of one that is too long to be kept and shown."""
    if len(given) <= _LONGEST_ID:
        return given
    return "sha256:" + hashlib.sha256(given.encode(errors="surrogatepass")).hexdigest()
