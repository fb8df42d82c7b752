"""Good rows of an input, typed, and the bad ones, counted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from raypref.schema import BadRows

Message = dict[str, Any]
Text = str | list[Message]
"""A prompt or a response: plain text, or chat messages with `role` and `content`."""


@dataclass
class RowTally:
    """Rows left out, by kind, with the first row number of each."""

    kinds: dict[str, BadRows] = field(default_factory=dict)

    def add(self, kind: str, rows: Iterable[int]) -> None:
        """Count `rows` under `kind`."""
        numbers = list(rows)
        if not numbers:
            return
        known = self.kinds.get(kind)
        first = min(numbers) if known is None else min(known.first_row, *numbers)
        self.kinds[kind] = BadRows(count=len(numbers) + (known.count if known else 0), first_row=int(first))

    @property
    def count(self) -> int:
        """Rows of all kinds."""
        return sum(bad.count for bad in self.kinds.values())

    def __str__(self) -> str:
        return ", ".join(
            f"{kind}: {bad.count} (first in row {bad.first_row})" for kind, bad in self.kinds.items()
        )


@dataclass(frozen=True)
class ComparisonRows:
    """Good rows of a comparisons input; row i of every field belongs together."""

    row: list[int]
    """Row number in the input, from 0, counted over all files."""
    user_id: list[str]
    prompt: list[Text]
    chosen: list[Text]
    rejected: list[Text]
    weight: list[float]
    timestamp: list[float]
    """Seconds since 1970; NaN where the input has none."""
    group: list[str | None]
    """What a row belongs to, such as a conversation; None where the input does not say."""

    def items(self) -> Iterator[tuple[Text, Text]]:
        """Yield the (prompt, response) of every row: chosen, then rejected."""
        for prompt, chosen, rejected in zip(self.prompt, self.chosen, self.rejected, strict=True):
            yield prompt, chosen
            yield prompt, rejected


@dataclass(frozen=True)
class RatingRows:
    """Good rows of a ratings input; row i of every field belongs together."""

    row: list[int]
    user_id: list[str]
    prompt: list[Text]
    response: list[Text]
    rating: list[float]
    timestamp: list[float]
    group: list[str | None]

    def items(self) -> Iterator[tuple[Text, Text]]:
        """Yield the (prompt, response) of every row."""
        yield from zip(self.prompt, self.response, strict=True)


class BadRowError(Exception):
    """A row cannot be used; the argument names the kind."""


def parse_comparison(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a row's fields in the order of `ComparisonRows`, or raise BadRowError."""
    user_id = _user(row["user_id"])
    prompt = _text(row["prompt"], empty=True) if "prompt" in row else ""
    chosen, rejected = _text(row["chosen"]), _text(row["rejected"])
    if chosen == rejected:
        raise BadRowError("same_text")
    weight = _number(row.get("weight"), default=1.0)
    if weight <= 0:
        raise BadRowError("weight_not_positive")
    timestamp = _number(row.get("timestamp"), default=math.nan)
    return user_id, prompt, chosen, rejected, weight, timestamp, _group(row.get("group"))


def parse_rating(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a row's fields in the order of `RatingRows`, or raise BadRowError."""
    user_id = _user(row["user_id"])
    prompt, response = _text(row["prompt"], empty=True), _text(row["response"])
    rating = _number(row["rating"])
    timestamp = _number(row.get("timestamp"), default=math.nan)
    return user_id, prompt, response, rating, timestamp, _group(row.get("group"))


def _user(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or value != value:
        raise BadRowError("missing")
    if not isinstance(value, str | int):
        raise BadRowError("malformed_user")
    return _unicode(str(value))


def _group(value: object) -> str | None:
    # Only who splits by groups needs them: without a name in `group`, a row is as good as any other.
    try:
        return _user(value)
    except BadRowError:
        return None


def _text(value: object, *, empty: bool = False) -> Text:
    if value is None:
        raise BadRowError("missing")
    if isinstance(value, str):
        if not empty and not value.strip():
            raise BadRowError("empty_text")
        return _unicode(value)
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise BadRowError("malformed_text")
    if not empty and not any(message["content"].strip() for message in value):
        raise BadRowError("empty_text")
    messages = [{key: part for key, part in message.items() if part is not None} for message in value]
    _unicode(json.dumps(messages, ensure_ascii=False))
    return messages


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRowError("invalid_unicode") from None
    return text


def _number(value: Any, default: float | None = None) -> float:
    if value is None or value == "":
        if default is None:
            raise BadRowError("missing")
        return default
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    try:
        number = float(value)
    except OverflowError:
        raise BadRowError("not_finite") from None
    except (TypeError, ValueError):
        raise BadRowError("not_a_number") from None
    if not math.isfinite(number):
        raise BadRowError("not_finite")
    return number
