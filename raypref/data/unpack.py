"""The memory-mapped form of an items table, unpacked once per node.

Parquet cannot be memory-mapped, so the first process of a node that opens a table unpacks it, checked, into
flat files in the node's cache; all processes of the node then share their pages. RAYPREF_CACHE names the
cache; what is in it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref import files
from raypref.data.mapped import MappedRows
from raypref.errors import CorruptError, InputError
from raypref.schema import (
    HASH_BYTES,
    METADATA_FILE,
    PROMPTS_SCHEMA,
    ItemsMetadata,
    ItemsPart,
    items_schema,
)

READERS = 2
"""Files read at once: hashing and decoding take longer than the disk."""

_KEY = np.dtype(f"S{HASH_BYTES}")
_EMBEDDINGS, _KEYS, _ROWS = "embeddings.f16", "keys.bin", "rows.i64"


def keys_of(hashes: list[bytes]) -> np.ndarray:
    """Return content hashes as numpy sorts and searches them: of equal length, so bytewise."""
    return np.frombuffer(b"".join(hashes), _KEY)


@dataclass(frozen=True)
class Unpacked:
    """An items table in flat, memory-mapped arrays."""

    embeddings: MappedRows
    """By item id."""
    keys_N: np.ndarray
    """Content hashes, sorted."""
    rows_N: np.ndarray
    """Item id of each of `keys_N`, int64."""

    def find(self, keys_N: np.ndarray) -> np.ndarray:
        """Return the item id of each key, int64; -1 where there is none."""
        at_N = np.minimum(np.searchsorted(self.keys_N, keys_N), len(self.keys_N) - 1)
        return np.where(self.keys_N[at_N] == keys_N, self.rows_N[at_N], -1)


def unpack(directory: Path, metadata: ItemsMetadata) -> Unpacked:
    """Map a table from the node's cache, filling the cache if no process of this node has yet.

    Raises:
        CorruptError: a file is missing, truncated or altered.
    """
    _check_files(directory, metadata)
    # The metadata holds the sha256 of every file, so it addresses the whole content. Links to prompts are
    # no part of what is unpacked.
    digest = hashlib.sha256(metadata.model_dump_json(exclude={"prompts"}).encode()).hexdigest()
    cache = _cache_root() / f"items-{digest[:32]}"
    with files.lock(cache.with_suffix(".lock")):
        if not cache.is_dir():
            for abandoned in cache.parent.glob(f".{cache.name}.*"):
                shutil.rmtree(abandoned)
            _fill(cache, directory, metadata)
    shape = (metadata.count, metadata.embedder.dim)
    return Unpacked(
        MappedRows(cache / _EMBEDDINGS, shape),
        np.asarray(np.memmap(cache / _KEYS, _KEY, "r")),
        np.asarray(np.memmap(cache / _ROWS, np.int64, "r")),
    )


def _check_files(directory: Path, metadata: ItemsMetadata) -> None:
    if not metadata.count or metadata.count != sum(part.rows for part in metadata.parts):
        raise CorruptError(f"{directory / METADATA_FILE}: the counts of its files do not add up.")
    for part in (*metadata.parts, *metadata.prompts):
        path = directory / part.name
        size = path.stat().st_size if path.is_file() else 0
        if size != part.bytes:
            raise CorruptError(f"{path}: {size} bytes instead of {part.bytes}; embed again or restore it.")


def _cache_root() -> Path:
    named = os.environ.get("RAYPREF_CACHE")
    root = Path(named) if named else Path(tempfile.gettempdir()) / f"raypref-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not named and root.stat().st_uid != os.getuid():
        raise InputError(f"{root}: belongs to another user; name a cache of your own in RAYPREF_CACHE.")
    return root


def read_parts(directory: Path, metadata: ItemsMetadata) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield keys and embeddings of each file of a table, in row order, checked.

    Raises:
        CorruptError: a file is missing, truncated or altered.
    """
    _check_files(directory, metadata)
    first, ahead = 0, deque[Future[tuple[np.ndarray, np.ndarray]]]()
    with ThreadPoolExecutor(READERS) as pool:
        for part in metadata.parts:
            ahead.append(pool.submit(_read_part, directory / part.name, part, metadata, first))
            first += part.rows
            if len(ahead) == READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def read_prompts(directory: Path, metadata: ItemsMetadata) -> np.ndarray:
    """Return the row of each item's prompt, int64, by item id; -1 where it has none.

    Raises:
        CorruptError: a file is missing, truncated or altered.
    """
    prompt_N = np.full(metadata.count, -1)
    for part in metadata.prompts:
        path = directory / part.name
        table = pq.read_table(pa.BufferReader(_read_bytes(path, part)))
        if table.schema != PROMPTS_SCHEMA or table.num_rows != part.rows:
            raise CorruptError(f"{path}: not {part.rows} prompts of items, as {METADATA_FILE} says.")
        item_N, prompt_item_N = (column.to_numpy() for column in table.columns)
        prompt_N[item_N] = prompt_item_N
    return prompt_N


def _fill(cache: Path, directory: Path, metadata: ItemsMetadata) -> None:
    keys: list[np.ndarray] = []
    with files.new_directory(cache, _KEYS) as work:
        with (work / _EMBEDDINGS).open("wb") as out:
            for keys_N, emb_ND in read_parts(directory, metadata):
                keys.append(keys_N)
                emb_ND.tofile(out)
        keys_N = np.concatenate(keys)
        rows_N = np.argsort(keys_N, kind="stable")
        keys_N[rows_N].tofile(work / _KEYS)
        rows_N.astype(np.int64).tofile(work / _ROWS)


def _read_bytes(path: Path, part: ItemsPart) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise CorruptError(f"{path}: its content has changed since it was written (sha256 differs).")
    return data


def _read_part(
    path: Path, part: ItemsPart, metadata: ItemsMetadata, first: int
) -> tuple[np.ndarray, np.ndarray]:
    dim = metadata.embedder.dim
    table = pq.read_table(pa.BufferReader(_read_bytes(path, part))).combine_chunks()
    if table.schema.remove_metadata() != items_schema(dim) or table.num_rows != part.rows:
        raise CorruptError(f"{path}: not {part.rows} items of width {dim}, as {METADATA_FILE} says.")
    if not np.array_equal(table["item_id"].to_numpy(), np.arange(first, first + part.rows)):
        raise CorruptError(f"{path}: item ids do not run from {first}.")
    keys_N = keys_of(table["content_hash"].to_pylist())
    emb_ND = table["embedding"].chunk(0).flatten().to_numpy().reshape(part.rows, dim)
    return keys_N, emb_ND
