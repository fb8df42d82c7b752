"""How a call reaches the service: attempts, pauses, one deadline over all of them."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from pydantic import ValidationError

from raypref.client.calls import Call
from raypref.client.errors import NotFound, RequestRefused, Unauthorized, Unavailable
from raypref.errors import ConfigError
from raypref.wire.answers import ErrorAnswer, ErrorBody

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which a call is sent again. That is safe for all of them, 500 and 504 too: reading changes
nothing, comparisons and decays carry ids that make the second time harmless, deleting twice is deleting."""


@dataclass(frozen=True)
class Settings:
    """Where the service is and how patient the client is with it."""

    base_url: str = "http://127.0.0.1:8000"
    api_key: str | None = field(default=None, repr=False)
    """Default: the environment's RAYPREF_API_KEY."""
    timeout_s: float = 30.0
    """Deadline of a whole call, with all its attempts and pauses."""
    attempt_timeout_s: float = 10.0
    """After this long an attempt is given up and another made."""
    retries: int = 10
    """Attempts after the first."""
    max_connections: int = 100
    """Requests under way at once; further ones wait within their deadlines."""
    max_idle_connections: int = 20
    """Connections kept open between requests."""

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: a setting is out of its range.
        """
        url = httpx.URL(self.base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"base_url: {self.base_url!r} is no http:// or https:// address.")
        for name in ("timeout_s", "attempt_timeout_s", "max_connections"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must be above 0.")
        for name in ("retries", "max_idle_connections"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must not be negative.")
        self.headers()

    def headers(self) -> dict[str, str]:
        """Return the headers of every request.

        Raises:
            ConfigError: the API key holds what no header can.
        """
        key = self.api_key or os.environ.get("RAYPREF_API_KEY")
        if not key:
            return {}
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("api_key: holds characters that no header can. Check RAYPREF_API_KEY.")
        return {"authorization": f"Bearer {key}"}


class Transport:
    """Connections to the service, within one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; nothing is sent yet."""
        self._settings = settings
        self._http = httpx.AsyncClient(
            base_url=settings.base_url,
            headers=settings.headers(),
            # Deadlines are kept around whole attempts: a timeout of each read would let a slow drip go on.
            timeout=None,
            limits=httpx.Limits(
                max_connections=settings.max_connections,
                max_keepalive_connections=settings.max_idle_connections,
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def exchange(self, call: Call[Any], retries: int | None = None) -> httpx.Response:
        """Send a call until it is answered; return the 2xx answer.

        Raises:
            RequestRefused: the service will not do it; nothing is sent again.
            Unavailable: it was not answered within the deadline and the retries.
        """
        settings = self._settings
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + settings.timeout_s
        request_id = uuid.uuid4().hex
        pauses = _pauses(settings.retries if retries is None else retries)
        maybe_applied = False
        attempts = 0
        while True:
            attempts += 1
            status, asked_s = None, 0.0
            try:
                async with asyncio.timeout(min(settings.attempt_timeout_s, max(deadline_s - now_s(), 0.0))):
                    response = await self._send(call, request_id)
            except TimeoutError:
                problem = "no answer in time"
                maybe_applied |= call.writes
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
                # Where there was no connection, nothing can have been done.
                maybe_applied |= call.writes and not isinstance(error, httpx.ConnectError)
            else:
                if response.is_success:
                    return response
                status = response.status_code
                if status not in PASSING:
                    raise _refusal(call, response, request_id, maybe_applied)
                problem = f"status {status}: {_error(response).message}"
                maybe_applied |= call.writes and status != 429
                asked_s = _retry_after(response)
            pause_s = next(pauses, None)
            left_s = deadline_s - now_s()
            if pause_s is None or max(pause_s, asked_s) >= left_s:
                url = f"{settings.base_url.rstrip('/')}{call.path}"
                raise Unavailable(
                    f"{call.method} {url} failed {attempts} times, the last time with {problem}. "
                    f"{_outcome(call, maybe_applied)} Check that the service runs, or give it more than "
                    f"timeout_s={settings.timeout_s:g} and retries={settings.retries}.",
                    status,
                    request_id=request_id,
                    maybe_applied=maybe_applied,
                )
            await asyncio.sleep(max(pause_s, asked_s))

    async def _send(self, call: Call[Any], request_id: str) -> httpx.Response:
        headers = {"accept": call.accept, "x-request-id": request_id}
        if call.body is not None:
            headers["content-type"] = call.body.media_type
        content = None if call.body is None else call.body.content
        return await self._http.request(call.method, call.path, content=content, headers=headers)


def _pauses(retries: int) -> Iterator[float]:
    """Yield the pause before each further attempt, in seconds."""
    for attempt in range(retries):
        longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        # Jitter, so that many clients do not come back together.
        yield random.uniform(longest_s / 2, longest_s)


def _refusal(
    call: Call[Any], response: httpx.Response, request_id: str, maybe_applied: bool
) -> RequestRefused:
    error = _error(response)
    kinds = {401: Unauthorized, 403: Unauthorized, 404: NotFound}
    kind = kinds.get(response.status_code, RequestRefused)
    message = f"{call.method} {call.path}: {response.status_code}, {error.message}"
    return kind(message, response.status_code, error.param, request_id, maybe_applied)


def _error(response: httpx.Response) -> ErrorBody:
    try:
        return ErrorAnswer.model_validate_json(response.content).error
    except ValidationError:
        # A proxy in between answered, or something that is no raypref.
        return ErrorBody(message=response.reason_phrase, type="", code=response.status_code)


def _outcome(call: Call[Any], maybe_applied: bool) -> str:
    if not call.writes:
        return "Nothing was to be changed."
    if maybe_applied:
        return "It may have been applied all the same; sending the same objects again is harmless."
    return "It was not applied."


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that the service asks to wait; 0 if it asks nothing."""
    value = response.headers.get("retry-after", "")
    try:
        return max(float(value), 0.0)
    except ValueError:
        try:
            return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
        except (ValueError, TypeError):
            return 0.0
