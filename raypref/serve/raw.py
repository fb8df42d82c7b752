"""Items as they are given, and as the log keeps them, so that a later bundle can encode them again.

One byte of the log says what follows: `h` the content hash of a registered item, `e` a float16 and `f` a
float32 embedding, little-endian. A hash survives an items table that is made again in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raypref.data.items import ItemTable
from raypref.errors import MismatchError
from raypref.schema import HASH_BYTES, require_embedder
from raypref.serve.calls import Items
from raypref.serve.judge import Judge
from raypref.wire.arrays import Encoded
from raypref.wire.errors import WireError

_HASH = b"h"
_TAGS = {np.dtype("<f2"): b"e", np.dtype("<f4"): b"f"}
_DTYPES = {tag: dtype for dtype, tag in _TAGS.items()}


def embeddings(judge: Judge, given: Items) -> np.ndarray:
    """Return the embeddings of items (N, width), in the type in which they came.

    Raises:
        WireError: a width, a row or an embedder that the bundle does not take.
    """
    if given.embedder is not None:
        try:
            require_embedder(given.embedder, judge.info.embedder, "embed")
        except MismatchError as error:
            raise WireError(503, str(error)) from error
    if len(given.emb_MD) and given.emb_MD.shape[1] != judge.width:
        raise WireError(
            422,
            f"embeddings are {given.emb_MD.shape[1]} wide, {judge.id} takes {judge.width}; embed with "
            f"{judge.info.embedder.model}.",
            "embedding",
        )
    registered = given.row_N >= 0
    if not registered.any():
        return given.emb_MD
    rows_N, count = given.row_N[registered], 0 if judge.items is None else len(judge.items)
    if rows_N.max() >= count or judge.items is None:
        raise WireError(
            422, f"item {rows_N.max()}: the service has {count} registered items, from 0.", "item"
        )
    emb_ND = np.empty((len(given), judge.width), np.float32)
    try:
        emb_ND[registered] = judge.items.gather(rows_N)
    except MismatchError as error:
        # A row that is a prompt, where the method needs the prompts of items.
        raise WireError(422, "item: one of them is no item that this model can score.", "item") from error
    if len(given.emb_MD):
        emb_ND[~registered] = given.emb_MD
    return emb_ND


def pack(given: Items, table: ItemTable | None) -> list[bytes]:
    """Return each item as the log keeps it."""
    rows_N = given.row_N[given.row_N >= 0]
    hashes = iter(table.hashes(rows_N) if table is not None and len(rows_N) else ())
    tag, vectors = _TAGS[given.emb_MD.dtype.newbyteorder("<")], iter(given.emb_MD)
    return [_HASH + next(hashes) if row >= 0 else tag + next(vectors).tobytes() for row in given.row_N]


def unpack(kept: Sequence[bytes], table: ItemTable | None, width: int) -> np.ndarray:
    """Return the embeddings of kept items, float32 (N, width).

    Raises:
        MismatchError: an item is not in the table, or an embedding has another width.
    """
    emb_ND = np.empty((len(kept), width), np.float32)
    named = [number for number, item in enumerate(kept) if item[:1] == _HASH]
    if named:
        if table is None:
            raise MismatchError("comparisons name registered items; start with their items table.")
        rows_N = table.rows_of([kept[number][1:] for number in named])
        if (rows_N < 0).any():
            raise MismatchError(
                f"{table.directory}: lacks {int((rows_N < 0).sum())} items that stored comparisons name; "
                "restore the items table, or append those items to it."
            )
        emb_ND[named] = table.gather(rows_N)
    for number, item in enumerate(kept):
        if item[:1] != _HASH:
            vector = np.frombuffer(item[1:], _DTYPES[item[:1]])
            if vector.shape != (width,):
                raise MismatchError(f"a stored embedding is {vector.size} wide, the bundle takes {width}.")
            emb_ND[number] = vector
    return emb_ND


def describe(item: bytes, table: ItemTable | None) -> dict[str, Any]:
    """Return a kept item as a request would name it; an item that the table lacks by its content hash."""
    if item[:1] != _HASH:
        return {"embedding": Encoded.of(np.frombuffer(item[1:], _DTYPES[item[:1]])).model_dump()}
    digest = item[1 : 1 + HASH_BYTES]
    row = int(table.rows_of([digest])[0]) if table is not None else -1
    return {"item": row} if row >= 0 else {"content_hash": digest.hex()}
