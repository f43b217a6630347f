"""The one exception a client may see, and what each failure of a backend becomes for it."""

from __future__ import annotations

from math import ceil

from backends.api import BackendError

_RETRY_AFTER_S = 30


class Refusal(Exception):
    """An answer that says no: HTTP `status`, a machine-readable `code`, and a message that says what to do.

    `param` names the field at fault as a path in the caller's own body (`messages[2].role`).
    `retry_after_s` becomes an integer Retry-After header; `allow` names the methods that a path does take.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        allow: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after_s, self.allow = param, retry_after_s, allow

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's headers say about it: when to come back, how to sign in, whether to try again at all."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(min(max(ceil(self.retry_after_s), 1), _RETRY_AFTER_S))
        elif self.status >= 500:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.allow is not None:
            headers["allow"] = self.allow
        return headers


def refusal_of(error: BackendError) -> Refusal:
    """Return what the client is told of a backend's failure."""
    match error.kind:
        case "rejected":
            return Refusal(400, error.code or "invalid_request", error.message, param=error.param)
        case "overloaded":
            return Refusal(503, "overloaded", error.message, retry_after_s=error.retry_after_s or 1)
        case "unreachable":
            return Refusal(503, "unavailable", error.message, retry_after_s=error.retry_after_s or 1)
        case "broken":
            return Refusal(502, error.code or "backend_failed", error.message)
