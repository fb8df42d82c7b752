"""One request on its way through the guard, and what became of it."""

from __future__ import annotations

import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from raypref.serve.compat import COMPAT_PATHS
from raypref.serve.refusals import headers_of, path_of
from raypref.wire.errors import WireError
from raypref.wire.ids import ID_PATTERN

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

_ID = re.compile(ID_PATTERN)


class Exchange:
    """A request, its answer as it is sent, and the figures of both."""

    __slots__ = (
        "_send",
        "begun_s",
        "bytes_in",
        "bytes_out",
        "headers",
        "method",
        "path",
        "request_id",
        "scope",
        "state",
        "status",
    )

    def __init__(self, scope: Message, send: Send) -> None:
        """Begin; `state` is what the routes will find in their scope."""
        self.begun_s = time.perf_counter()
        self._send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = _request_id(self.headers.get(b"x-request-id"))
        self.method: str = scope["method"]
        self.path = path_of(scope)
        self.state: dict[str, Any] = {
            **(scope.get("state") or {}),
            "request_id": self.request_id,
            "tenant": "default",
            "body": b"",
            "bulk": False,
        }
        # A copy: the router writes the route into it, and no two requests may share a state.
        self.scope: dict[str, Any] = {**scope, "state": self.state}
        if self.method == "HEAD":
            self.scope["method"] = "GET"
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0

    async def send(self, message: Message) -> None:
        """Send a part of the answer on, with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            if self.method == "HEAD":
                message = {**message, "body": b""}
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, error: WireError) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status:
            return
        body = error.body()
        headers = [(name.encode(), value.encode()) for name, value in headers_of(error).items()]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def route(self) -> str:
        """Return the route's template; the path itself may hold a user's id."""
        route = self.scope.get("route")
        if route is not None:
            return route.path
        return self.path if self.path in COMPAT_PATHS else "unrouted"


def _request_id(given: bytes | None) -> str:
    if given is not None:
        text = given.decode("latin-1")
        if _ID.fullmatch(text):
            return text
    return secrets.token_hex(16)


def trace_of(error: BaseException) -> list[str]:
    """Return where it went wrong; not the messages, which may hold what a user wrote."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(lines) < 100:
        lines.append(type(cause).__qualname__)
        lines += [line.strip() for line in traceback.format_tb(cause.__traceback__)]
        cause = cause.__cause__ or cause.__context__
    return lines
