"""What a call to the service can end in, other than an answer."""

from __future__ import annotations

from raypref.errors import RayprefError


class ClientError(RayprefError):
    """A call failed; raised itself where the answer is not one that the service gives."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        param: str | None = None,
        request_id: str = "",
        maybe_applied: bool = False,
    ) -> None:
        """Say what is wrong; everything else is None or empty where it is not known."""
        super().__init__(message, status, param, request_id, maybe_applied)
        self.message = message
        self.status = status
        """Of the last answer; None where none came."""
        self.param = param
        """The part of the request that is at fault."""
        self.request_id = request_id
        """Of the call, the same in all its attempts; the service's logs have it."""
        self.maybe_applied = maybe_applied
        """The call changes something, and an attempt whose answer was lost may have done so."""

    def __str__(self) -> str:
        """Return the message."""
        return self.message


class RequestRefused(ClientError):
    """The service will not do this, however often it is asked (4xx)."""


class Unauthorized(RequestRefused):
    """The API key is missing, wrong or not allowed to do this (401, 403)."""


class NotFound(RequestRefused):
    """There is no such user, comparison or route (404)."""


class Unavailable(ClientError):
    """No answer within the deadline and the retries; `maybe_applied` says whether it may still have worked.

    Calling again with the same objects is harmless: comparisons and decays carry the ids they were made with.
    """
