"""The items table: one embedding for each text, written once, gathered by row from a memory map.

On disk it is a folder of Parquet files and their metadata, which lists them; `unpack` maps them to memory.
Where prompts are embedded too, a prompt is a row like any other, and further files link items to it
(`raypref.data.prompts`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypref import files
from raypref.data.parts import Part, checked, regroup, write_part
from raypref.data.unpack import Unpacked, keys_of, read_prompts, unpack
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


class ItemTable:
    """A finished items table, memory-mapped; sent to another process it travels as its path."""

    def __init__(
        self, directory: Path, metadata: ItemsMetadata, unpacked: Unpacked, prompted: bool = False
    ) -> None:
        """Hold a table that is already mapped; use `open`, and `with_prompts` for the prompted view."""
        self.directory = directory
        self.metadata = metadata
        self._unpacked = unpacked
        self._prompted = prompted

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

    def with_prompts(self, wanted: bool = True) -> ItemTable:
        """Return the same table with each embedding followed by that of the item's prompt, 2·D wide.

        Args:
            wanted: whether that is what is wanted (`MethodConfig.needs_prompts`); if not, the table itself.

        Raises:
            MismatchError: prompts are not embedded.
        """
        if not wanted:
            return self
        if not self.metadata.prompts:
            raise MismatchError(
                f"{self.directory}: holds no embeddings of prompts alone, which this method needs. "
                "Set `embed.prompts: true` and embed again; what is embedded stays."
            )
        return ItemTable(self.directory, self.metadata, self._unpacked, prompted=True)

    def __reduce__(self) -> tuple[object, tuple[Path, bool]]:
        return _open, (self.directory, self._prompted)

    def __len__(self) -> int:
        return self.metadata.count

    @property
    def width(self) -> int:
        """Width of what `gather` returns: D, or 2·D with prompts."""
        return self.metadata.embedder.dim * (2 if self._prompted else 1)

    @cached_property
    def prompt_N(self) -> np.ndarray:
        """The row of each item's prompt, int64, by item id; -1 where it has none."""
        return read_prompts(self.directory, self.metadata)

    def gather(self, ids_N: np.ndarray) -> np.ndarray:
        """Return the embeddings of item ids, float16 (N, `width`), a copy.

        Raises:
            MismatchError: an id is not a row of this table, or has no prompt where prompts are wanted.
        """
        if len(ids_N) and (ids_N.min() < 0 or ids_N.max() >= len(self)):
            raise MismatchError(
                f"{self.directory}: items 0 to {len(self) - 1}, asked for {ids_N.min()} to {ids_N.max()}. "
                "The comparisons were prepared with another items table; prepare them again."
            )
        emb_ND = self._unpacked.embeddings.take(ids_N)
        if not self._prompted:
            return emb_ND
        prompt_N = self.prompt_N[ids_N]
        if (lone := np.flatnonzero(prompt_N < 0)).size:
            raise MismatchError(
                f"{self.directory}: item {ids_N[lone[0]]} came from an input whose prompts are not embedded; "
                "embed that input again with `embed.prompts: true`."
            )
        return np.concatenate([emb_ND, self._unpacked.embeddings.take(prompt_N)], 1)

    def hashes(self, ids_N: np.ndarray) -> list[bytes]:
        """Return the content hash of each item id: its address in any table of the same texts."""
        data = self._unpacked.keys_N[self._place_N[ids_N]].tobytes()
        # Not key by key: numpy cuts the zeros off the end of a single one.
        return [data[first : first + HASH_BYTES] for first in range(0, len(data), HASH_BYTES)]

    @cached_property
    def _place_N(self) -> np.ndarray:
        """Where each item id stands among the sorted keys."""
        return np.argsort(self._unpacked.rows_N)

    def rows_of(self, hashes: list[bytes]) -> np.ndarray:
        """Return the item id of each content hash, int64; -1 where the table has no such text."""
        return self.find(keys_of(hashes))

    def find(self, keys_N: np.ndarray) -> np.ndarray:
        """Return the item id of each key, as `rows_of` does."""
        return self._unpacked.find(keys_N)

    def sample(self, n: int, seed: int) -> np.ndarray:
        """Return the embeddings of the items that `sample_rows` names."""
        return self.gather(self.sample_rows(n, seed))

    def sample_rows(self, n: int, seed: int) -> np.ndarray:
        """Return the ids of `n` distinct items, or of all where there are fewer, ascending.

        Rows of prompts are not among them, so methods without prompts see the same sample with or without.
        """
        if self._prompted:
            rows_N = np.flatnonzero(self.prompt_N >= 0)
        else:
            rows_N = np.delete(np.arange(len(self)), np.unique(self.prompt_N[self.prompt_N >= 0]))
        if n < len(rows_N):
            rows_N = np.random.default_rng(seed).choice(rows_N, n, replace=False, shuffle=False)
        return np.sort(rows_N)


def _open(directory: Path, prompted: bool) -> ItemTable:
    return ItemTable.open(directory).with_prompts(prompted)


def write_items(directory: Path, embedder: Embedder, parts: Iterable[Part]) -> ItemsMetadata:
    """Write a new items table atomically; an item's id is its place in `parts`.

    Raises:
        InputError: there are no rows, two rows have one content hash, or a vector is not usable.
        MismatchError: vectors have another width than the embedder's.
    """
    with files.new_directory(Path(directory), METADATA_FILE) as work:
        listed, keys_N = _write_parts(work, embedder, parts, [])
        _refuse_duplicates(keys_N)
        return _write_metadata(work, embedder, listed, ())


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
    return _write_metadata(table.directory, embedder, listed, table.metadata.prompts)


def _write_parts(
    directory: Path, embedder: Embedder, parts: Iterable[Part], listed: list[ItemsPart]
) -> tuple[list[ItemsPart], np.ndarray]:
    """Write the rows of `parts` after the files in `listed`; return all files and the new rows' keys."""
    schema = items_schema(embedder.dim)
    next_id = sum(part.rows for part in listed)
    written = [keys_of([])]
    for keys_N, emb_ND in regroup(checked(parts, embedder), max(1, PART_BYTES // (2 * embedder.dim))):
        flat = pa.array(emb_ND.reshape(-1))
        columns = [
            pa.array(np.arange(next_id, next_id + len(keys_N))),
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(HASH_BYTES), len(keys_N), [None, pa.py_buffer(keys_N.tobytes())]
            ),
            pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
        ]
        path = directory / f"part-{len(listed):06d}.parquet"
        listed.append(write_part(path, pa.table(columns, schema=schema)))
        written.append(keys_N)
        next_id += len(keys_N)
    if len(written) == 1:
        raise InputError(f"{directory}: an items table needs at least one item, there was none to write.")
    return listed, np.concatenate(written)


def _refuse_duplicates(keys_N: np.ndarray) -> None:
    order_N = np.argsort(keys_N, kind="stable")
    same = np.flatnonzero(keys_N[order_N[1:]] == keys_N[order_N[:-1]])
    if same.size:
        first, second = order_N[same[0]], order_N[same[0] + 1]
        raise InputError(f"rows {first} and {second} have the same content hash; an item is written once.")


def _write_metadata(
    directory: Path, embedder: Embedder, listed: list[ItemsPart], prompts: tuple[ItemsPart, ...]
) -> ItemsMetadata:
    count = sum(part.rows for part in listed)
    metadata = ItemsMetadata(embedder=embedder, count=count, parts=tuple(listed), prompts=prompts)
    files.write_text(directory / METADATA_FILE, metadata.model_dump_json(indent=1) + "\n")
    return metadata
