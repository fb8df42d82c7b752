"""What every request passes before a route sees it: key, room, size, time, form; and its line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from raypref.serve.compat import COMPAT_PATHS
from raypref.serve.exchange import ASGIApp, Exchange, Message, Receive, Send, trace_of
from raypref.serve.pages import PAGE_FILES
from raypref.serve.refusals import broken, overloaded
from raypref.serve.spans import under, within
from raypref.wire.errors import WireError
from raypref.wire.tensors import MEDIA_TYPE

if TYPE_CHECKING:
    from raypref.serve.keys import Keys
    from raypref.serve.meter import Meter
    from raypref.serve.spans import Span, Tracer

LOG = logging.getLogger("ray.serve.raypref")

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json", "/redoc", *PAGE_FILES})
"""Answered without a key, and however busy the service is."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

GONE = 499
"""Logged where the client left before there was an answer."""

_ENCODE = json.JSONEncoder().encode
_JSON = b"application/json"
_BULK = MEDIA_TYPE.encode()
_PATH = re.compile(r"/|(?:/[A-Za-z0-9_~@:+=-][A-Za-z0-9._~@:+=-]*)+")


class Limits(BaseModel):
    """What one process of the service takes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(default=8 * 2**20, gt=0, description="Largest JSON body.")
    max_bulk_bytes: int = Field(default=256 * 2**20, gt=0, description="Largest safetensors body.")
    max_held_bytes: int = Field(
        default=2**30, gt=0, description="Bodies in memory at once, all requests together."
    )
    body_timeout_s: float = Field(default=10.0, gt=0, description="Time a client has to send its whole body.")
    max_in_flight: int = Field(default=256, gt=0, description="Requests in the process at once.")
    patience_s: float = Field(
        default=5.0,
        gt=0,
        description="Longest wait for room: a refusal costs about half of what an answer does.",
    )
    retry_after_s: int = Field(
        default=1, ge=0, description="When a client that found no room is to come back."
    )


class Guard:
    """ASGI middleware before the routes.

    A route finds in `scope["state"]`: `request_id`, `tenant` ("default" without keys), `body` (bytes, whole)
    and `bulk` (whether the body is safetensors, not JSON).
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, keys: Keys | None, meter: Meter, tracer: Tracer | None = None
    ) -> None:
        """Stand before `app`; without keys everybody may enter, without a tracer no request is traced."""
        self._app = app
        self._limits = limits
        self._keys = keys
        self._meter = meter
        self._tracer = tracer
        self._room = asyncio.Semaphore(limits.max_in_flight)
        self._in_flight = 0
        self._held_bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; nothing that goes wrong in it gets past here."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Exchange(scope, send)
        with under(self._traced(call)) as span:
            try:
                await self._admit(call, receive)
            except WireError as error:
                await call.refuse(error)
            except Exception as error:
                LOG.error("%s", _ENCODE({"request_id": call.request_id, "trace": trace_of(error)}))
                await call.refuse(broken())
            finally:
                self._record(call, span)

    def _traced(self, call: Exchange) -> Span | None:
        if self._tracer is None or call.path in OPEN_PATHS:
            return None
        return self._tracer.request(call.headers.get(b"traceparent"))

    async def _admit(self, call: Exchange, receive: Receive) -> None:
        scope, path = call.scope, call.path
        if not _PATH.fullmatch(path) or b"%2f" in (scope.get("raw_path") or b"").lower():
            raise WireError(404, "There is no such route: its path has parts that no name here can have.")
        if path in OPEN_PATHS:
            await self._app(scope, receive, call.send)
            return
        if self._keys is not None:
            call.state["tenant"] = self._tenant(self._keys, call.headers)
        limits = self._limits
        try:
            with within("room"):
                async with asyncio.timeout(limits.patience_s if self._room.locked() else None):
                    await self._room.acquire()
        except TimeoutError as error:
            message = "Too many requests are under way; try again."
            raise overloaded(path, message, limits.retry_after_s) from error
        self._in_flight += 1
        self._meter.in_flight(self._in_flight)
        try:
            body = await self._body(call, receive)
            if body is not None:
                call.state["body"] = body
                await self._app(scope, _replay(body, receive), call.send)
        finally:
            self._room.release()
            self._in_flight -= 1
            self._held_bytes -= call.bytes_in
            self._meter.in_flight(self._in_flight)

    def _tenant(self, keys: Keys, headers: dict[bytes, bytes]) -> str:
        presented = None
        if given := headers.get(b"authorization"):
            scheme, _, key = given.partition(b" ")
            presented = key.strip().decode("latin-1") if scheme.lower() == b"bearer" else None
        elif given := headers.get(b"x-api-key"):
            presented = given.decode("latin-1")
        tenant = keys.tenant_of(presented)
        if tenant is None:
            raise WireError(401, "No valid API key: send the header Authorization: Bearer KEY.")
        return tenant

    async def _body(self, call: Exchange, receive: Receive) -> bytes | None:
        """Return the body, empty where the method has none; None where the client left."""
        with_body = call.method in WITH_BODY
        limit = self._limits.max_body_bytes
        if with_body and _is_bulk(call):
            call.state["bulk"] = True
            limit = self._limits.max_bulk_bytes
        declared = call.headers.get(b"content-length", b"0")
        if not declared.isdigit():
            raise WireError(400, "Content-Length is no number.")
        # Long before int() would refuse them, that many digits are too many bytes.
        if len(declared) > 18 or int(declared) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                body = await self._read(call, receive, limit)
        except TimeoutError as error:
            raise WireError(408, f"The body took longer than {self._limits.body_timeout_s:g} s.") from error
        return body if with_body or body is None else b""

    async def _read(self, call: Exchange, receive: Receive, limit: int) -> bytes | None:
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                call.status = GONE
                return None
            part: bytes = message.get("body", b"")
            call.bytes_in += len(part)
            self._held_bytes += len(part)
            if call.bytes_in > limit:
                raise _too_large(limit)
            if self._held_bytes > self._limits.max_held_bytes:
                raise overloaded(call.path, "Too much is under way; try again.", self._limits.retry_after_s)
            last = not message.get("more_body", False)
            if last and not parts:
                return part
            parts += part
            if last:
                return bytes(parts)

    def _record(self, call: Exchange, span: Span | None) -> None:
        seconds = time.perf_counter() - call.begun_s
        method = call.method if call.method in METHODS else "other"
        route, status = call.route(), call.status or GONE
        self._meter.request(route, method, status, seconds)
        if span is not None:
            span.answered(method, route, status)
        if LOG.isEnabledFor(logging.INFO):
            line = {
                "request_id": call.request_id,
                "tenant": call.state["tenant"],
                "method": method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 3),
                "bytes_in": call.bytes_in,
                "bytes_out": call.bytes_out,
            }
            if span is not None:
                line["trace_id"] = span.trace_id
            LOG.info("%s", _ENCODE(line))


def _is_bulk(call: Exchange) -> bool:
    """Return whether the body is safetensors; refuse what is neither that nor JSON."""
    encoding = call.headers.get(b"content-encoding", b"identity")
    if encoding.strip().lower() not in (b"identity", b""):
        raise WireError(415, "Compressed bodies are not taken: send it without Content-Encoding.")
    given = call.headers.get(b"content-type")
    if given is None:
        call.scope["headers"] = [*call.scope["headers"], (b"content-type", _JSON)]
        return False
    kind, *parameters = (part.strip().lower() for part in given.split(b";"))
    charsets = [part[8:].strip(b'"') for part in parameters if part.startswith(b"charset=")]
    if any(charset not in (b"utf-8", b"utf8") for charset in charsets):
        raise WireError(415, "JSON is taken in UTF-8 only.")
    if kind == _BULK and call.path not in COMPAT_PATHS:
        return True
    if kind != _JSON:
        raise WireError(415, f"Send application/json or, to the native routes, {MEDIA_TYPE}.")
    return False


def _too_large(limit: int) -> WireError:
    return WireError(413, f"The body is larger than {limit:,} bytes; send it in parts.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, once, and then whatever comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
