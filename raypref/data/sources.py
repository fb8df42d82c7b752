"""The two long forms of preferences, read from what people have, cleaned and counted."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from raypref.config import InputConfig
from raypref.data.formats import RawColumns, read_raw
from raypref.errors import InputError
from raypref.schema import (
    COMPARISON_COLUMNS,
    RATING_COLUMNS,
    BadRows,
    canonical_text,
    content_hash,
    require_columns,
)

Message = dict[str, Any]
Text = str | list[Message]
"""A prompt or a response: plain text, or chat messages with `role` and `content`."""

Kind = Literal["comparisons", "ratings"]

CHAT_TEMPLATE = "chat"


def render(template: str, prompt: Text, response: Text) -> str:
    """Return the text of an item, whose `content_hash` addresses it in the items table.

    Placeholders are replaced as they stand, so texts may hold braces. Where the template is not `chat`,
    a single message becomes its content, several become `role: content` paragraphs. The template `chat`
    gives the canonical JSON of all messages, to which an engine applies its model's chat template; plain
    text becomes a message of `user` (prompt) or `assistant` (response), an empty prompt none.
    """
    if template == CHAT_TEMPLATE:
        return canonical_text(_messages(prompt, "user") + _messages(response, "assistant"))
    values = {"{prompt}": _flat(prompt), "{response}": _flat(response)}
    return re.sub(r"\{prompt\}|\{response\}", lambda match: values[match.group()], template)


def _messages(text: Text, role: str) -> list[Message]:
    if isinstance(text, str):
        return [{"role": role, "content": text}] if text else []
    return text


def _flat(text: Text) -> str:
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


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

    def items(self) -> Iterator[tuple[Text, Text]]:
        """Yield the (prompt, response) of every row."""
        yield from zip(self.prompt, self.response, strict=True)


class BadRowError(Exception):
    """A row cannot be used; the argument names the kind."""


class Source:
    """An input, streamed once or more; after a pass `rows` and `bad` say what was read and left out."""

    def __init__(self, config: InputConfig) -> None:
        """Take the input that `config.path` names; nothing is read yet."""
        if config.path is None:
            raise InputError("no input: set input.path to a file or a folder of preferences.")
        self.config = config
        self.path = config.path
        self.rows = 0
        self.bad = RowTally()

    def batches(self) -> Iterator[ComparisonRows | RatingRows]:
        """Yield the good rows batch by batch; all batches are of one kind.

        Raises:
            InputError: a file is damaged, columns are missing, there are no rows at all, or the share of
                bad rows is above `max_bad_share`.
        """
        self.rows, self.bad = 0, RowTally()
        kind: Kind | None = None
        for where, raw in read_raw(self.path, self.config.batch_rows):
            if kind is None:
                kind = self.config.kind if self.config.kind != "auto" else detect_kind(raw, where)
            needed = COMPARISON_COLUMNS if kind == "comparisons" else RATING_COLUMNS
            require_columns(raw, [name for name in needed if name != "prompt" or kind == "ratings"], where)
            count = len(raw["user_id"])
            if kind == "comparisons":
                good = self._clean(raw, count, _comparison)
                batch = ComparisonRows(*good) if good else None
            else:
                good = self._clean(raw, count, _rating)
                batch = RatingRows(*good) if good else None
            self.rows += count
            if batch:
                yield batch
        self._check()

    def _clean(
        self, raw: RawColumns, count: int, parse: Callable[[dict[str, Any]], tuple[Any, ...]]
    ) -> list[list[Any]]:
        good: list[tuple[Any, ...]] = []
        bad: dict[str, list[int]] = defaultdict(list)
        names = list(raw)
        for row, values in enumerate(zip(*raw.values(), strict=True), start=self.rows):
            try:
                good.append((row, *parse(dict(zip(names, values, strict=True)))))
            except BadRowError as error:
                bad[str(error)].append(row)
        for kind, rows in bad.items():
            self.bad.add(kind, rows)
        return [list(column) for column in zip(*good, strict=True)]

    def _check(self) -> None:
        if self.rows == 0:
            raise InputError(f"{self.path}: the input has no rows.")
        share = self.bad.count / self.rows
        if share > self.config.max_bad_share:
            raise InputError(
                f"{self.path}: {self.bad.count} of {self.rows} rows are bad, more than the share "
                f"input.max_bad_share={self.config.max_bad_share}. {self.bad}. "
                "Repair them, or allow a larger share."
            )


def iter_texts(config: InputConfig) -> Iterator[tuple[Text, Text]]:
    """Yield the distinct (prompt, response) items of an input, in order of first appearance."""
    seen: set[bytes] = set()
    for batch in Source(config).batches():
        for prompt, response in batch.items():
            address = content_hash(canonical_text(prompt)) + content_hash(canonical_text(response))
            if address not in seen:
                seen.add(address)
                yield prompt, response


def detect_kind(columns: Iterable[str], where: str) -> Kind:
    """Return the long form that a file's columns make, or raise InputError."""
    have = set(columns)
    comparisons = have >= {"user_id", "chosen", "rejected"}
    ratings = have >= set(RATING_COLUMNS)
    if comparisons and ratings:
        raise InputError(f"{where}: has the columns of both long forms; set input.kind.")
    if comparisons or ratings:
        return "comparisons" if comparisons else "ratings"
    raise InputError(
        f"{where}: has neither the columns of comparisons ({', '.join(COMPARISON_COLUMNS)}) nor those of "
        f"ratings ({', '.join(RATING_COLUMNS)}); of these it has {', '.join(sorted(have)) or 'none'}."
    )


def _comparison(row: Mapping[str, Any]) -> tuple[Any, ...]:
    user_id = _user(row["user_id"])
    prompt = _text(row["prompt"], empty=True) if "prompt" in row else ""
    chosen, rejected = _text(row["chosen"]), _text(row["rejected"])
    if chosen == rejected:
        raise BadRowError("same_text")
    weight = _number(row.get("weight"), default=1.0)
    if weight <= 0:
        raise BadRowError("weight_not_positive")
    return user_id, prompt, chosen, rejected, weight, _number(row.get("timestamp"), default=math.nan)


def _rating(row: Mapping[str, Any]) -> tuple[Any, ...]:
    user_id = _user(row["user_id"])
    prompt, response = _text(row["prompt"], empty=True), _text(row["response"])
    rating = _number(row["rating"])
    return user_id, prompt, response, rating, _number(row.get("timestamp"), default=math.nan)


def _user(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or value != value:
        raise BadRowError("missing")
    if not isinstance(value, str | int):
        raise BadRowError("malformed_user")
    return _unicode(str(value))


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
