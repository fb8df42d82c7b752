"""From a request's items to arrays: text is embedded, all of a request at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from raypref.schema import Embedder
from raypref.serve.calls import Items
from raypref.wire.arrays import vector
from raypref.wire.errors import WireError
from raypref.wire.requests import Bulk, Item, Text


class TextEmbedder(Protocol):
    """Embeds rendered texts as the bundle's embedder does."""

    async def embed(self, items: Sequence[tuple[Text | None, Text]]) -> tuple[np.ndarray, Embedder]:
        """Return the embeddings of (prompt, response), float16 (N, width), and what made them.

        Without a prompt a response is a full text, prompt and response in it, and is embedded as it stands.

        Raises:
            WireError: a text has no tokens, or the embedder is down.
        """
        ...

    async def describe(self) -> Embedder:
        """Return which map from text to vectors this is."""
        ...


class Intake:
    """The items of one request, in groups; each group becomes one `Items`."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take the arrays that came beside the request, where it was safetensors."""
        self._tensors = dict(tensors)
        self._groups: list[Items | Sequence[tuple[Text, Item]]] = []
        self._names: list[str] = []

    def add(self, name: str, items: Sequence[tuple[Text, Item]] | Bulk) -> int:
        """Add a group, each item with its prompt, and return its number.

        A tensor called `name` takes the place of the first group of that name.
        """
        tensor = self._tensors.pop(name, None)
        if tensor is not None:
            self._groups.append(Items.of(np.atleast_2d(tensor)))
        elif isinstance(items, Bulk):
            emb_ND = items.embeddings.array()
            if emb_ND.ndim != 2 or not emb_ND.size:
                raise WireError(422, f"{name}.embeddings: give its shape [N, D], neither of them 0.", name)
            self._groups.append(Items.of(emb_ND))
        else:
            self._groups.append(items)
        self._names.append(name)
        return len(self._groups) - 1

    def count(self, number: int) -> int:
        """Return how many items a group has."""
        return len(self._groups[number])

    async def resolve(self, embedder: TextEmbedder | None) -> list[Items]:
        """Return the groups, in their order.

        Raises:
            WireError: text without an embedder, widths that differ, a vector that is none.
        """
        texts = [
            (prompt, item.text)
            for group in self._groups
            if not isinstance(group, Items)
            for prompt, item in group
            if item.text is not None
        ]
        found: list[np.ndarray] = []
        made_by: Embedder | None = None
        if texts:
            if embedder is None:
                raise WireError(
                    422,
                    "this service embeds no text: send embeddings or registered items, or configure `embed`.",
                    "text",
                )
            emb_ND, made_by = await embedder.embed(texts)
            found = list(emb_ND)
        embedded = iter(found)
        groups: list[Items] = []
        for name, group in zip(self._names, self._groups, strict=True):
            if isinstance(group, Items):
                groups.append(group)
                continue
            vectors: list[np.ndarray] = []
            for place, (_, item) in enumerate(group):
                if item.text is not None:
                    vectors.append(next(embedded))
                elif item.embedding is not None:
                    try:
                        vectors.append(vector(item.embedding))
                    except ValueError as error:
                        raise WireError(422, f"{name}.{place}.embedding: {error}", name) from error
            row_N = np.array([-1 if item.item is None else item.item for _, item in group], np.int64)
            text = made_by if any(item.text is not None for _, item in group) else None
            groups.append(Items(_stack(name, vectors), row_N, text))
        return groups


def _stack(name: str, vectors: list[np.ndarray]) -> np.ndarray:
    """Return vectors as one array: float16 where all are, otherwise float32."""
    if not vectors:
        return np.zeros((0, 0), np.float32)
    if len({part.size for part in vectors}) > 1:
        raise WireError(422, f"{name}: embeddings differ in width.", name)
    half = all(part.dtype.itemsize == 2 for part in vectors)
    return np.stack(vectors).astype(np.float16 if half else np.float32, copy=False)
