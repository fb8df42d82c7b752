"""Errors as they travel, in OpenAI's form."""

from __future__ import annotations

from raypref.wire.answers import ErrorAnswer, ErrorBody

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "overloaded_error",
    500: "internal_error",
    503: "overloaded_error",
}


class WireError(Exception):
    """A request that is refused: status, what is wrong and what to do about it."""

    def __init__(
        self, status: int, message: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        """Say what is wrong; `param` names the part of the request."""
        super().__init__(status, message, param, retry_after_s)
        self.status = status
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """Return the message."""
        return self.message

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error")
        error = ErrorBody(message=self.message, type=kind, param=self.param, code=self.status)
        return ErrorAnswer(error=error).model_dump_json().encode()
