"""The one exception a client may see."""

from __future__ import annotations


class Refusal(Exception):
    """An answer that says no: HTTP `status`, a machine-readable `code`, and a message that says what to do.

    `param` names the field at fault as a path in the caller's own body (`messages[2].role`).
    `retry_after_s` becomes an integer Retry-After header.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """See the class."""
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after_s = param, retry_after_s
