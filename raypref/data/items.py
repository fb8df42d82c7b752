"""The items table: one embedding for each text, written once, gathered by row from a memory map.

On disk it is a folder of Parquet files and their metadata, which lists them; `unpack` maps them to memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref import files
from raypref.data.unpack import Unpacked, keys_of, unpack
from raypref.errors import InputError, MismatchError
from raypref.schema import (
    HASH_BYTES,
    METADATA_FILE,
    Embedder,
    ItemsMetadata,
    ItemsPart,
    items_schema,
    read_metadata,
    require_embedder,
)

PART_BYTES = 64 * 2**20
"""Size of the embeddings in one Parquet file, at most."""

NORM_TOLERANCE = 1e-2
"""How far from 1 the norm of a normalised vector may be; float16 alone moves it by 1e-3."""

Part = tuple[list[bytes], np.ndarray]
"""Content hashes, and the embeddings of their texts: float16 (N, D)."""


class ItemTable:
    """A finished items table, memory-mapped; sent to another process it travels as its path."""

    def __init__(self, directory: Path, metadata: ItemsMetadata, unpacked: Unpacked) -> None:
        """Hold a table that is already mapped; use `open`."""
        self.directory = directory
        self.metadata = metadata
        self._unpacked = unpacked

    @classmethod
    def open(cls, directory: Path) -> ItemTable:
        """Open a table, unpacking it into the node's cache if no process of this node has yet.

        Raises:
            InputError: there is no finished table.
            CorruptError: a file is missing, truncated or altered.
            MismatchError: another schema version wrote it.
        """
        directory = Path(directory)
        metadata = read_metadata(directory, ItemsMetadata)
        return cls(directory, metadata, unpack(directory, metadata))

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return ItemTable.open, (self.directory,)

    def __len__(self) -> int:
        return self.metadata.count

    def gather(self, ids_N: np.ndarray) -> np.ndarray:
        """Return the embeddings of item ids, float16 (N, D), a copy.

        Raises:
            MismatchError: an id is not a row of this table.
        """
        if len(ids_N) and (ids_N.min() < 0 or ids_N.max() >= len(self)):
            raise MismatchError(
                f"{self.directory}: items 0 to {len(self) - 1}, asked for {ids_N.min()} to {ids_N.max()}. "
                "The comparisons were prepared with another items table; prepare them again."
            )
        return self._unpacked.emb_ND[ids_N]

    def rows_of(self, hashes: list[bytes]) -> np.ndarray:
        """Return the item id of each content hash, int64; -1 where the table has no such text."""
        return self.find(keys_of(hashes))

    def find(self, keys_N: np.ndarray) -> np.ndarray:
        """Return the item id of each key, as `rows_of` does."""
        return self._unpacked.find(keys_N)

    def sample(self, n: int, seed: int) -> np.ndarray:
        """Return the embeddings of `n` distinct items, or of all where there are fewer; in row order."""
        if n >= len(self):
            return np.array(self._unpacked.emb_ND)
        ids_N = np.random.default_rng(seed).choice(len(self), n, replace=False, shuffle=False)
        return self.gather(np.sort(ids_N))


def write_items(directory: Path, embedder: Embedder, parts: Iterable[Part]) -> ItemsMetadata:
    """Write a new items table atomically; an item's id is its place in `parts`.

    Raises:
        InputError: there are no rows, two rows have one content hash, or a vector is not usable.
        MismatchError: vectors have another width than the embedder's.
    """
    with files.new_directory(Path(directory), METADATA_FILE) as work:
        listed, keys_N = _write_parts(work, embedder, parts, [])
        _refuse_duplicates(keys_N)
        return _write_metadata(work, embedder, listed)


def append_items(directory: Path, embedder: Embedder, parts: Iterable[Part]) -> ItemsMetadata:
    """Add rows to a table; the ids of its rows stay. Readers see the old table, then the new one.

    New files count only once the metadata lists them, and the metadata is replaced atomically.

    Raises:
        InputError: as `write_items`, or the table already has a content hash.
        MismatchError: another embedder made the table.
    """
    table = ItemTable.open(directory)
    require_embedder(table.metadata.embedder, embedder, directory)
    listed, keys_N = _write_parts(table.directory, embedder, parts, list(table.metadata.parts))
    _refuse_duplicates(keys_N)
    if (known := np.flatnonzero(table.find(keys_N) >= 0)).size:
        raise InputError(f"{directory}: row {known[0]} of the new rows is already in the table.")
    return _write_metadata(table.directory, embedder, listed)


def check_vectors(emb_ND: np.ndarray, embedder: Embedder, number_N: np.ndarray) -> None:
    """Refuse vectors that no item may have, by their number.

    Raises:
        InputError: a vector is not finite, is zero, or is not of unit length where it should be.
        MismatchError: the width is not the embedder's.
    """
    if emb_ND.ndim != 2 or emb_ND.shape[1] != embedder.dim:
        raise MismatchError(f"vectors of shape {emb_ND.shape}; {embedder.model} has D = {embedder.dim}.")
    norm_N = np.linalg.norm(emb_ND.astype(np.float32), axis=1)
    largest_N = np.abs(emb_ND).max(1)
    wrong = {
        "is not finite": ~np.isfinite(norm_N),
        "is too large for float16": largest_N > np.finfo(np.float16).max,
        "is zero": largest_N < np.finfo(np.float16).smallest_subnormal,
    }
    if embedder.normalised:
        wrong["is not of unit length"] = np.abs(norm_N - 1) >= NORM_TOLERANCE
    for problem, bad_N in wrong.items():
        if bad_N.any():
            row = int(np.argmax(bad_N))
            raise InputError(f"row {number_N[row]}: the embedding {problem} (norm {norm_N[row]:.4g}).")


def _write_parts(
    directory: Path, embedder: Embedder, parts: Iterable[Part], listed: list[ItemsPart]
) -> tuple[list[ItemsPart], np.ndarray]:
    """Write the rows of `parts` after the files in `listed`; return all files and the new rows' keys."""
    schema = items_schema(embedder.dim)
    next_id = sum(part.rows for part in listed)
    written = [keys_of([])]
    for keys_N, emb_ND in _regroup(_checked(parts, embedder), max(1, PART_BYTES // (2 * embedder.dim))):
        flat = pa.array(emb_ND.reshape(-1))
        columns = [
            pa.array(np.arange(next_id, next_id + len(keys_N))),
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(HASH_BYTES), len(keys_N), [None, pa.py_buffer(keys_N.tobytes())]
            ),
            pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
        ]
        sink = pa.BufferOutputStream()
        # Neither dictionaries nor compression make float vectors or hashes smaller.
        pq.write_table(pa.table(columns, schema=schema), sink, compression="none", use_dictionary=False)
        data = sink.getvalue().to_pybytes()
        name = f"part-{len(listed):06d}.parquet"
        files.write_bytes(directory / name, data)
        digest = hashlib.sha256(data).hexdigest()
        listed.append(ItemsPart(name=name, rows=len(keys_N), bytes=len(data), sha256=digest))
        written.append(keys_N)
        next_id += len(keys_N)
    if len(written) == 1:
        raise InputError(f"{directory}: an items table needs at least one item, there was none to write.")
    return listed, np.concatenate(written)


def _checked(parts: Iterable[Part], embedder: Embedder) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    first = 0
    for hashes, emb_ND in parts:
        if len(hashes) != len(emb_ND):
            raise ValueError(f"{len(hashes)} hashes for {len(emb_ND)} embeddings")
        emb_ND = np.asarray(emb_ND, np.float16)
        check_vectors(emb_ND, embedder, np.arange(first, first + len(hashes)))
        yield keys_of(hashes), emb_ND
        first += len(hashes)


def _regroup(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same rows in groups of `rows`; only the last may be smaller."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    missing = rows
    for keys_N, emb_ND in parts:
        while len(keys_N):
            held.append((keys_N[:missing], emb_ND[:missing]))
            keys_N, emb_ND = keys_N[missing:], emb_ND[missing:]
            missing -= len(held[-1][0])
            if not missing:
                yield np.concatenate([k for k, _ in held]), np.concatenate([e for _, e in held])
                held, missing = [], rows
    if held:
        yield np.concatenate([k for k, _ in held]), np.concatenate([e for _, e in held])


def _refuse_duplicates(keys_N: np.ndarray) -> None:
    order_N = np.argsort(keys_N, kind="stable")
    same = np.flatnonzero(keys_N[order_N[1:]] == keys_N[order_N[:-1]])
    if same.size:
        first, second = order_N[same[0]], order_N[same[0] + 1]
        raise InputError(f"rows {first} and {second} have the same content hash; an item is written once.")


def _write_metadata(directory: Path, embedder: Embedder, listed: list[ItemsPart]) -> ItemsMetadata:
    count = sum(part.rows for part in listed)
    metadata = ItemsMetadata(embedder=embedder, count=count, parts=tuple(listed))
    files.write_text(directory / METADATA_FILE, metadata.model_dump_json(indent=1) + "\n")
    return metadata
