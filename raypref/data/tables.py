"""The prepared tables: comparisons by user, read from disk or from a stream into flat arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypref.data.items import ItemTable
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.schema import (
    COMPARISONS_SCHEMA,
    USERS_SCHEMA,
    Cohort,
    Split,
    TablesMetadata,
    read_metadata,
    require_embedder,
)

COMPARISONS_FOLDER = "comparisons"
USERS_FILE = "users.parquet"

Batch = Mapping[str, np.ndarray] | pa.RecordBatch | pa.Table


def bucket_file(bucket: int) -> str:
    """Return the name of a bucket's file in the comparisons folder."""
    return f"bucket-{bucket:05d}.parquet"


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of U users in flat arrays of length M, sorted by user, then `pair_id`.

    The comparisons of the i-th user are rows `offsets[i]` to `offsets[i + 1]`.
    """

    user_U: np.ndarray
    """Number of each user in the users table, int64."""
    row_U: np.ndarray
    """Row of each user among the seen users, int64; -1 for an unseen user."""
    offsets: np.ndarray
    """int64, U + 1 of them."""
    pair_M: np.ndarray
    """`pair_id`, int64."""
    chosen_M: np.ndarray
    """Item ids, int64."""
    rejected_M: np.ndarray
    """Item ids, int64."""
    weight_M: np.ndarray
    """float32, positive."""
    timestamp_M: np.ndarray | None = None
    """Seconds since 1970, float64, NaN where unknown; None where the source has no such column."""

    def __len__(self) -> int:
        return len(self.pair_M)

    @property
    def counts_U(self) -> np.ndarray:
        """Number of comparisons of each user, int64."""
        return np.diff(self.offsets)

    @classmethod
    def from_batches(cls, batches: Iterable[Batch], rows: np.ndarray) -> Comparisons:
        """Collect batches of the comparisons table that come in any order.

        Args:
            batches: Arrow tables, or mappings of numpy columns, with the columns of the table.
            rows: what `Tables.rows` returns: the row of every user.

        Raises:
            CorruptError: a pair comes twice, or a user is not in the users table.
        """
        parts = [_columns(batch) for batch in batches]
        stamped = bool(parts) and all("timestamp" in part for part in parts)
        column = {
            name: np.concatenate([part[name] for part in parts] or [np.zeros(0)]).astype(dtype)
            for name, dtype in _DTYPES.items()
            if name != "timestamp" or stamped
        }
        order = np.lexsort((column["pair_id"], column["user"]))
        column = {name: values[order] for name, values in column.items()}
        user, pair = column["user"], column["pair_id"]
        if np.any((pair[1:] == pair[:-1]) & (user[1:] == user[:-1])):
            raise CorruptError("a comparison comes twice: the batches overlap.")
        if len(user) and (user[0] < 0 or user[-1] >= len(rows)):
            raise CorruptError(f"comparisons of user {user[-1]}, but the users table has {len(rows)} users.")
        user_U, first_U = np.unique(user, return_index=True)
        return cls(
            user_U,
            np.asarray(rows, np.int64)[user_U],
            np.append(first_U, len(user)).astype(np.int64),
            pair,
            column["chosen"],
            column["rejected"],
            column["weight"],
            column.get("timestamp"),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Comparisons]) -> Comparisons:
        """Return the comparisons of all parts, sorted again; parts may share users, never comparisons."""
        if not parts:
            return cls.from_batches([], np.zeros(0, np.int64))
        user_U = np.concatenate([part.user_U for part in parts])
        rows = np.full(int(user_U.max(initial=-1)) + 1, -1, np.int64)
        for part in parts:
            rows[part.user_U] = np.maximum(rows[part.user_U], part.row_U)
        return cls.from_batches([part._batch() for part in parts], rows)

    def select(self, users: np.ndarray) -> Comparisons:
        """Return the comparisons of `users` (numbers of the users table), in that order.

        A user who has none here keeps an empty range, so selections of two splits stay aligned; the row of
        such a user is -1.
        """
        users = np.asarray(users, np.int64)
        if not len(self.user_U):
            return replace(
                self, user_U=users, row_U=np.full_like(users, -1), offsets=np.zeros(len(users) + 1, np.int64)
            )
        at = np.minimum(np.searchsorted(self.user_U, users), len(self.user_U) - 1)
        known = self.user_U[at] == users
        count = np.where(known, self.counts_U[at], 0)
        offsets = np.concatenate(([0], np.cumsum(count))).astype(np.int64)
        take = np.arange(offsets[-1]) + np.repeat(self.offsets[at] - offsets[:-1], count)
        return Comparisons(
            users,
            np.where(known, self.row_U[at], -1),
            offsets,
            self.pair_M[take],
            self.chosen_M[take],
            self.rejected_M[take],
            self.weight_M[take],
            None if self.timestamp_M is None else self.timestamp_M[take],
        )

    def _batch(self) -> dict[str, np.ndarray]:
        batch = {
            "user": np.repeat(self.user_U, self.counts_U),
            "pair_id": self.pair_M,
            "chosen": self.chosen_M,
            "rejected": self.rejected_M,
            "weight": self.weight_M,
        }
        return batch if self.timestamp_M is None else {**batch, "timestamp": self.timestamp_M}


_DTYPES = {
    "user": "int64",
    "pair_id": "int64",
    "chosen": "int64",
    "rejected": "int64",
    "weight": "float32",
    "timestamp": "float64",
}


def _columns(batch: Batch) -> dict[str, np.ndarray]:
    if isinstance(batch, Mapping):
        return {name: np.asarray(batch[name]) for name in _DTYPES if name in batch}
    have = set(batch.schema.names)
    return {
        name: batch.column(name).to_numpy(zero_copy_only=False)
        if isinstance(batch, pa.RecordBatch)
        else batch.column(name).to_numpy()
        for name in _DTYPES
        if name in have
    }


class Tables:
    """A prepared folder: users, and comparisons in buckets of users."""

    def __init__(self, directory: Path, metadata: TablesMetadata) -> None:
        """Hold a folder that is already checked; use `open`."""
        self.directory = directory
        self.metadata = metadata

    @classmethod
    def open(cls, directory: Path) -> Tables:
        """Open a prepared folder and check its files against its metadata.

        Raises:
            InputError: there are no finished tables.
            CorruptError: a file is missing, truncated or does not have what the metadata says.
            MismatchError: another schema version wrote it.
        """
        directory = Path(directory)
        metadata = read_metadata(directory, TablesMetadata)
        tables = cls(directory, metadata)
        users = _rows(directory / USERS_FILE, USERS_SCHEMA)
        if users != metadata.seen_users + metadata.unseen_users:
            raise CorruptError(f"{directory / USERS_FILE}: {users} users, not what the metadata says.")
        rows = sum(_rows(path, COMPARISONS_SCHEMA) for path in tables.files())
        if rows != sum(metadata.comparisons.values()):
            raise CorruptError(f"{directory}: {rows} comparisons, not what the metadata says.")
        return tables

    def require_items(self, items: ItemTable) -> None:
        """Raise MismatchError unless the comparisons can have been prepared with this items table."""
        require_embedder(items.metadata.embedder, self.metadata.embedder, items.directory)
        if self.metadata.items > len(items):
            raise MismatchError(
                f"{self.directory}: prepared with {self.metadata.items} items, but {items.directory} has "
                f"{len(items)}; prepare again."
            )

    def files(self, buckets: Iterable[int] | None = None) -> list[Path]:
        """Return the comparison files of `buckets`, or all of them."""
        numbers = range(self.metadata.buckets) if buckets is None else buckets
        return [self.directory / COMPARISONS_FOLDER / bucket_file(bucket) for bucket in numbers]

    def shard(self, rank: int, world_size: int) -> list[int]:
        """Return the buckets of one of `world_size` workers; the shards partition the users.

        Raises:
            InputError: there are fewer buckets than workers.
        """
        if world_size > self.metadata.buckets:
            raise InputError(
                f"{self.directory}: {self.metadata.buckets} buckets for {world_size} workers; "
                "prepare again with a larger prepare.buckets, or use fewer workers."
            )
        return list(range(rank, self.metadata.buckets, world_size))

    @cached_property
    def users(self) -> pa.Table:
        """The users table, by user number."""
        return _read(self.directory / USERS_FILE, USERS_SCHEMA)

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of every user among the seen users, by user number; int64, -1 for unseen users."""
        return self.users["row"].fill_null(-1).to_numpy().astype(np.int64)

    def comparisons(
        self, cohort: Cohort | None, splits: Sequence[Split], buckets: Iterable[int] | None = None
    ) -> Comparisons:
        """Return the comparisons of a cohort (None: of both) in `splits`, of all users or of some buckets.

        Raises:
            CorruptError: a file cannot be read.
        """
        wanted = None if cohort is None else (self.rows >= 0) == (cohort == "seen")
        batches: list[Batch] = []
        for path in self.files(buckets):
            table = _read(path, COMPARISONS_SCHEMA).filter(pc.field("split").isin(list(splits)))
            if wanted is not None:
                table = table.filter(pa.array(wanted[table["user"].to_numpy()]))
            batches.append(table)
        return Comparisons.from_batches(batches, self.rows)


def _rows(path: Path, schema: pa.Schema) -> int:
    try:
        with pq.ParquetFile(path) as parquet:
            if not parquet.schema_arrow.equals(schema):
                raise CorruptError(f"{path}: its columns are not those of this table.")
            return parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path}: cannot be read ({error}); prepare the tables again.") from error


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(path, schema=schema)
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path}: cannot be read ({error}); prepare the tables again.") from error
