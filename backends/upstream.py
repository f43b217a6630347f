"""What it takes to speak with another server: posts from calls, deltas from what it sends, errors from refusals.

Pure. Refuses to know sockets; `http.py` carries it, `openai_upstream.py` and `anthropic_upstream.py` are its two forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from backends.api import BackendError, Call, Delta, Usage
from backends.lenient import Json, child, parsed, text
from backends.sse import Event

NOT_FOUND = "upstream_not_found"  # the code of an error: there is nothing at that path, or no such model
_OVERLOADED = (429, 503, 529)
_OPERATORS = (401, 402, 403, 404, 405, 407)
_TOO_LONG = re.compile(
    r"maximum context length|prompt is too long|model's context is|exceeds? .{0,40}context|context.{0,9} exceeded",
    re.IGNORECASE,
)
_BUSY = re.compile(r"overloaded|rate_limit|capacity")


@dataclass(frozen=True, slots=True)
class Post:
    """What is posted to the server: the path below its url, or below its root, and the JSON body."""

    path: str
    body: Mapping[str, object]
    is_at_root: bool = False


class UpstreamAnswer(Protocol):
    """The answer to one call on its way back from the server."""

    is_over: bool
    has_spoken: bool

    def read(self, event: Event) -> Iterator[Delta]:
        """Yield what one event says; BackendError when it says that the server has failed."""
        ...

    def read_whole(self, body: Json) -> Iterator[Delta]:
        """Yield all of an answer from a server that does not stream though it was asked to."""
        ...

    def end(self) -> Iterator[Delta]:
        """Yield what is left once nothing more comes; BackendError (broken) when the answer is not complete."""
        ...


class UpstreamDialect(Protocol):
    """The API that a server speaks."""

    def post(self, call: Call, model: str) -> Post:
        """Write a call; BackendError (rejected) names what this API cannot be asked."""
        ...

    def tokenize(self, call: Call, model: str) -> Post:
        """Ask for the tokens of a chat or of the one prompt of a call."""
        ...

    def tokens(self, body: Json) -> Sequence[int]:
        """Read the tokens."""
        ...

    def detokenize(self, token_ids: Sequence[int], model: str) -> Post:
        """Ask for the text of tokens."""
        ...

    def embed(self, call: Call, model: str) -> Post:
        """Ask for the vectors of a call's prompts."""
        ...

    def headers(self, api_key: str) -> Mapping[str, str]:
        """Return the headers that sign a question."""
        ...

    def answer(self, call: Call) -> UpstreamAnswer:
        """Prepare to read the answer to a call."""
        ...


@dataclass(slots=True)
class Endings:
    """Which sequences have still to end. The last end is held back until the counts that follow it are there."""

    unfinished: set[int]
    held: Delta | None = None
    usage: Usage | None = None

    def finish(self, delta: Delta) -> Iterator[Delta]:
        """Take the end of a sequence; one that comes again is dropped."""
        if delta.index not in self.unfinished:
            return
        self.unfinished.discard(delta.index)
        if self.unfinished:
            yield delta
        else:
            self.held = delta

    def release(self, *, has_spoken: bool) -> Iterator[Delta]:
        """Give the last end with the counts, if the server told any."""
        if self.held is None:
            raise broken("ended its answer before it was complete", has_spoken=has_spoken)
        yield replace(self.held, usage=self.usage)


def cannot(param: str, message: str) -> BackendError:
    """Return the refusal of what the server's API has no words for; the message continues the sentence of `param`."""
    return BackendError("rejected", f"{param} {message}", code="unsupported_value", param=param)


def broken(message: str, *, has_spoken: bool) -> BackendError:
    """Return the failure of a server that answers; before it has said anything another one may be asked."""
    return BackendError("broken", f"the server behind the model {message}", retryable=not has_spoken)


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
    """Return what an answer with another status than 200 means."""
    error = _error(parsed(body))
    said = text(error, "message")[:1000] or "no reason was given"
    if status in _OVERLOADED:
        message = f"the server behind the model has too much to do: {said}"
        return BackendError("overloaded", message, retryable=True, retry_after_s=_seconds(headers.get("retry-after")))
    if status in _OPERATORS:
        return _misconfigured(status)
    if 400 <= status < 500:
        param = text(error, "param") or None
        return BackendError("rejected", said, code=_code(error, said), param=param)
    return broken(f"answered with the status {status}: {said}", has_spoken=False)


def failure(body: Json, *, has_spoken: bool) -> BackendError:
    """Return what an error inside a stream means."""
    error = _error(body)
    said = text(error, "message")[:1000] or "no reason was given"
    if not has_spoken and _BUSY.search(f"{text(error, 'type')} {text(error, 'code')}"):
        return BackendError("overloaded", f"the server behind the model has too much to do: {said}", retryable=True)
    return broken(f"failed: {said}", has_spoken=has_spoken)


def _error(body: Json) -> Json:
    """Find the error object: both APIs wrap it, older vLLMs do not, and some write a text instead."""
    wrapped = body.get("error")
    if isinstance(wrapped, str):
        return {"message": wrapped}
    return child(body, "error") or body


def _code(error: Json, said: str) -> str:
    if _TOO_LONG.search(said) or text(error, "type") == "exceed_context_size_error":
        return "context_length_exceeded"
    return text(error, "code") or "invalid_request"


def _misconfigured(status: int) -> BackendError:
    """Name the setting at fault; what the server said stays out of it, as it may repeat the key."""
    setting = {401: "api_key", 402: "api_key", 403: "api_key", 407: "url"}.get(status, "url or upstream_model")
    return BackendError(
        "broken",
        f"the server behind the model refuses this gateway ({status}); its operator has to correct {setting} of the "
        "release in gateway.toml",
        retryable=True,
        code=NOT_FOUND if status in {404, 405} else "upstream_misconfigured",
    )


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", retry_after) else None
