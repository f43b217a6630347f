"""Answers that outlive their call, so that the next one can build on them: each tenant's, in memory, within a bound.

Refuses to know JSON and HTTP. What is lost here is only ever told as "not found"; nothing else depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sys import getsizeof
from typing import Protocol

from backends.api import Message

_TENANT_BYTES = 64 << 20
_MESSAGE_BYTES = 256  # a Message and its place in a tuple, without its texts


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it was told (`body`), what was said up to it (`turns`) and what each of its items said (`items`).

    `turns` leaves out the instructions, which hold for one response only.
    """

    id: str
    tenant: str
    body: bytes
    turns: tuple[Message, ...]
    items: tuple[Message, ...]
    conversation: str | None = None

    @property
    def history(self) -> tuple[Message, ...]:
        """Return what the next turn follows."""
        return self.turns + self.items


class StoredResponses(Protocol):
    """What is kept of the responses of each tenant; none sees another's. Every answer comes at once, from memory."""

    def keep(self, response: StoredResponse) -> None:
        """Keep a response, as the latest of its conversation if it has one; older ones may be forgotten for it."""
        ...

    def find(self, tenant: str, response_id: str) -> StoredResponse | None:
        """Return a response that is still kept."""
        ...

    def latest(self, tenant: str, conversation: str) -> StoredResponse | None:
        """Return the last response of a conversation."""
        ...

    def forget(self, tenant: str, response_id: str) -> bool:
        """Delete a response; whether there was one."""
        ...


class MemoryResponses:
    """Keeps what was used last, up to `tenant_bytes` for each tenant, so that none pushes out another's."""

    def __init__(self, *, tenant_bytes: int = _TENANT_BYTES) -> None:
        self._tenant_bytes = tenant_bytes
        self._shelves: dict[str, _Shelf] = {}

    def keep(self, response: StoredResponse) -> None:
        """Keep a response; one that alone is larger than the bound is not kept."""
        self._shelf(response.tenant).put(response)

    def find(self, tenant: str, response_id: str) -> StoredResponse | None:
        """Return a response that is still kept."""
        return self._shelf(tenant).use(response_id)

    def latest(self, tenant: str, conversation: str) -> StoredResponse | None:
        """Return the last response of a conversation."""
        shelf = self._shelf(tenant)
        return shelf.use(shelf.latest.get(conversation, ""))

    def forget(self, tenant: str, response_id: str) -> bool:
        """Delete a response; whether there was one."""
        return self._shelf(tenant).remove(response_id)

    def held_bytes(self, tenant: str) -> int:
        """Return how much of its bound a tenant has used; texts that several responses share count for each."""
        return self._shelf(tenant).held_bytes

    def _shelf(self, tenant: str) -> _Shelf:
        return self._shelves.get(tenant) or self._shelves.setdefault(tenant, _Shelf(self._tenant_bytes))


class _Shelf:
    """One tenant's responses, the one used longest ago first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._responses: dict[str, StoredResponse] = {}
        self.latest: dict[str, str] = {}
        self.held_bytes = 0

    def put(self, response: StoredResponse) -> None:
        size = _size(response)
        if size > self._limit:
            return
        self.remove(response.id)
        while self.held_bytes + size > self._limit:
            self.remove(next(iter(self._responses)))
        self._responses[response.id] = response
        self.held_bytes += size
        if response.conversation is not None:
            self.latest[response.conversation] = response.id

    def use(self, response_id: str) -> StoredResponse | None:
        response = self._responses.pop(response_id, None)
        if response is not None:
            self._responses[response_id] = response
        return response

    def remove(self, response_id: str) -> bool:
        response = self._responses.pop(response_id, None)
        if response is None:
            return False
        self.held_bytes -= _size(response)
        if response.conversation is not None and self.latest.get(response.conversation) == response_id:
            del self.latest[response.conversation]
        return True


def _size(response: StoredResponse) -> int:
    return getsizeof(response.body) + sum(map(_message_size, response.history))


def _message_size(message: Message) -> int:
    return (
        _MESSAGE_BYTES
        + getsizeof(message.text)
        + _texts_size(text for call in message.tool_calls for text in (call.id, call.name, call.arguments))
    )


def _texts_size(texts: Iterable[str]) -> int:
    return sum(map(getsizeof, texts))
