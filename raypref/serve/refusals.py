"""Refusals as answers: every error leaves in OpenAI's form, and none repeats what the client sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from raypref.serve.compat import COMPAT_PATHS
from raypref.wire.errors import WireError
from raypref.wire.invalid import invalid

CLOSING = {408, 413}
"""The body was not read: what is still on its way must not be taken for the next request."""

MESSAGES = {404: "There is no such route.", 405: "This route does not take this method."}


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path of a request below the prefix that the application is mounted at."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def headers_of(error: WireError) -> dict[str, str]:
    """Return the headers that belong to a refusal."""
    headers = {"content-type": "application/json"}
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="raypref"'
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status in CLOSING:
        headers["connection"] = "close"
    return headers


def broken() -> WireError:
    """Return what a client learns of a fault of ours: nothing but that it is ours."""
    return WireError(500, "Something broke here. The header x-request-id says where it is in our logs.")


def overloaded(path: str, message: str, retry_after_s: int) -> WireError:
    """Return the refusal of more work than there is room for: 503 where clients never retry a 4xx."""
    return WireError(503 if path in COMPAT_PATHS else 429, message, retry_after_s=retry_after_s)


def install_refusals(app: FastAPI) -> None:
    """Make a FastAPI application answer every error in OpenAI's form."""
    app.add_exception_handler(WireError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(HTTPException, _refuse_http)
    # Starlette raises it again afterwards, and the guard logs it.
    app.add_exception_handler(Exception, _refuse_broken)


def _answer(error: WireError, extra: Mapping[str, str] | None = None) -> Response:
    return Response(error.body(), error.status, {**headers_of(error), **(extra or {})})


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    if error.status == 429:
        error = overloaded(path_of(request.scope), error.message, error.retry_after_s or 1)
    return _answer(error)


def _refuse_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(invalid(error.errors()))


def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = MESSAGES.get(error.status_code, str(error.detail))
    return _answer(WireError(error.status_code, message), error.headers)


def _refuse_broken(request: Request, error: Exception) -> Response:
    return _answer(broken())
