"""The two long forms of preferences, read from what people have, cleaned and counted."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from raypref.config import InputConfig
from raypref.data.formats import RawColumns, read_raw
from raypref.data.rows import (
    BadRowError,
    ComparisonRows,
    Message,
    RatingRows,
    RowTally,
    Text,
    parse_comparison,
    parse_rating,
)
from raypref.errors import InputError
from raypref.schema import COMPARISON_COLUMNS, RATING_COLUMNS, canonical_text, content_hash, require_columns

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
                good = self._clean(raw, count, parse_comparison)
                batch = ComparisonRows(*good) if good else None
            else:
                good = self._clean(raw, count, parse_rating)
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
