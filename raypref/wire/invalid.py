"""What pydantic found wrong in a request, as its refusal: places and rules, never what the client sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from raypref.wire.errors import WireError

SHOWN = 3
"""How many places of an invalid request are named."""

MOST = 1000
"""Errors that are looked at: a request of nothing but errors has a million, of a kilobyte each."""


def refusal_of(error: ValidationError) -> WireError:
    """Return the refusal of a body that pydantic did not take: 400 where it is no JSON, otherwise 422."""
    if error.error_count() > MOST:
        return WireError(422, f"{error.error_count():,} places of the request are wrong.")
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        return WireError(400, f"{_encodable(errors[0]['msg'])[:200]}.")
    return invalid(errors)


def invalid(errors: Sequence[Mapping[str, Any]]) -> WireError:
    """Return the refusal (422) of a request with these errors, as `ValidationError.errors()` lists them."""
    told = [f"{_place(error['loc']) or 'body'}: {error['msg']}"[:300] for error in errors[:SHOWN]]
    if len(errors) > SHOWN:
        told.append(f"and {len(errors) - SHOWN} more")
    param = _place(errors[0]["loc"]) if errors else ""
    return WireError(422, _encodable("; ".join(told)), _encodable(param) or None)


def _place(location: Sequence[Any]) -> str:
    # The names of a union's members stand among the keys of the request; they are no identifiers.
    parts = [part for part in location if isinstance(part, int) or str(part).isidentifier()]
    if parts and parts[0] == "body":
        parts = parts[1:]
    return ".".join(str(part) for part in parts)[:100]


def _encodable(text: str) -> str:
    # A lone surrogate, which JSON can bring in a key, has no UTF-8.
    return text.encode(errors="replace").decode()
