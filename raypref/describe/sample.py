"""The items that a description looks at, with their texts where the run's input has them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import combinations, islice

import numpy as np

from raypref.config import InputConfig
from raypref.data.items import ItemTable
from raypref.data.rows import Text
from raypref.data.sources import iter_texts, render
from raypref.data.tables import Tables
from raypref.errors import MismatchError
from raypref.schema import canonical_text, content_hash

MOST_ITEMS = 20_000
MOST_RESPONSES = 1_000
"""To one prompt."""
MOST_PAIRED = 32
"""Responses to one prompt that are paired with each other, at most."""
LOOKUP_TEXTS = 4096


@dataclass(frozen=True)
class Sample:
    """Items, and the pairs of them that answer one prompt."""

    row_N: np.ndarray
    """Item ids."""
    group_N: np.ndarray
    """Number of each item's prompt, dense from 0; all 0 where prompts are unknown."""
    pair_M2: np.ndarray
    """Places in `row_N`."""
    prompts: list[str] | None = None
    """Of each item; None without texts."""
    responses: list[str] | None = None


@dataclass
class _Prompt:
    text: str
    rows: list[int] = field(default_factory=list[int])
    responses: list[str] = field(default_factory=list[str])


class _Draw:
    """Whole prompts with the smallest hashes, as many as hold `MOST_ITEMS` items."""

    def __init__(self, items: ItemTable) -> None:
        self._items = items
        self._held: dict[bytes, _Prompt] = {}
        self._count = 0
        self._limit = b"\xff" * 8
        self.found = False
        """Whether the table holds any text at all."""

    def take(self, texts: list[tuple[Text, Text]]) -> None:
        """Look up texts and keep those whose prompt is drawn so far."""
        template = self._items.metadata.embedder.template
        hashes = [content_hash(render(template, prompt, response)) for prompt, response in texts]
        for row, (prompt, response) in zip(self._items.rows_of(hashes).tolist(), texts, strict=True):
            if row >= 0:
                self.found = True
                self._keep(row, prompt, response)
        for key in sorted(self._held, reverse=True):
            if self._count <= MOST_ITEMS:
                break
            self._limit = key
            self._count -= len(self._held.pop(key).rows)

    def _keep(self, row: int, prompt: Text, response: Text) -> None:
        plain = render("{prompt}", prompt, "")
        # Without prompts, items are drawn alone.
        unit = canonical_text(prompt) if plain else f"\0{canonical_text(response)}"
        key = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if key >= self._limit:
            return
        entry = self._held.setdefault(key, _Prompt(plain))
        if len(entry.rows) < MOST_RESPONSES and row not in entry.rows:
            entry.rows.append(row)
            entry.responses.append(render("{response}", "", response))
            self._count += 1

    def prompts(self) -> list[_Prompt]:
        """Return the drawn prompts by hash, without those that have one response to be compared with none."""
        drawn = [entry for _, entry in sorted(self._held.items())]
        return [entry for entry in drawn if len(entry.rows) > 1 or not entry.text]


def sample_texts(config: InputConfig, items: ItemTable) -> Sample:
    """Sample whole prompts of the input, by hash: the same ones in whatever order the input comes.

    Responses without a prompt all answer one.

    Raises:
        MismatchError: the items table holds none of the input's texts, or no two to one prompt.
        InputError: the input cannot be read.
    """
    draw = _Draw(items)
    texts = iter_texts(config)
    while chunk := list(islice(texts, LOOKUP_TEXTS)):
        draw.take(chunk)
    if not draw.found:
        raise MismatchError(
            f"{items.directory}: holds none of the texts of {config.path}; name the input that was embedded."
        )
    kept = draw.prompts()
    if not kept:
        raise MismatchError(f"{items.directory}: no prompt of {config.path} has two responses to tell apart.")
    return _numbered(kept)


def _numbered(kept: list[_Prompt]) -> Sample:
    """Number the prompts; responses by row, so that nothing depends on the order of the input."""
    alone = [entry for entry in kept if not entry.text]
    groups = [entry for entry in kept if entry.text]
    if alone:
        groups.append(
            _Prompt(
                "",
                [row for entry in alone for row in entry.rows],
                [text for entry in alone for text in entry.responses],
            )
        )
    for group in groups:
        both = sorted(zip(group.rows, group.responses, strict=True))
        group.rows, group.responses = [row for row, _ in both], [text for _, text in both]
    sizes = [len(group.rows) for group in groups]
    starts = np.cumsum([0, *sizes])
    pairs = [
        np.array(list(combinations(range(start, start + min(size, MOST_PAIRED)), 2)), np.int64).reshape(-1, 2)
        for start, size in zip(starts.tolist(), sizes, strict=False)
    ]
    return Sample(
        np.array([row for group in groups for row in group.rows], np.int64),
        np.repeat(np.arange(len(groups)), sizes),
        np.concatenate(pairs),
        [group.text for group in groups for _ in group.rows],
        [text for group in groups for text in group.responses],
    )


def sample_rows(items: ItemTable, tables: Tables | None) -> Sample:
    """Sample items without texts: those of comparisons, or any where there are none."""
    if tables is None:
        row_N = items.sample_rows(MOST_ITEMS, seed=0)
        return Sample(row_N, np.zeros(len(row_N), np.int64), np.zeros((0, 2), np.int64))
    pairs = np.zeros((0, 2), np.int64)
    for bucket in range(tables.metadata.buckets):
        found = tables.comparisons(None, ["train"], [bucket])
        sides = np.sort(np.stack([found.chosen_M, found.rejected_M], 1), 1)
        pairs = np.unique(np.concatenate([pairs, sides]), axis=0)
        if len(pairs) >= MOST_ITEMS // 2:
            break
    pairs = pairs[np.sort(np.random.default_rng(0).permutation(len(pairs))[: MOST_ITEMS // 2])]
    row_N, place = np.unique(pairs, return_inverse=True)
    return Sample(row_N, np.zeros(len(row_N), np.int64), place.reshape(-1, 2))
