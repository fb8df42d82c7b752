"""Writes the prepared tables; whoever makes comparisons gives them here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref import files
from raypref.data.splits import SPLITS
from raypref.data.tables import COMPARISONS_FOLDER, USERS_FILE, bucket_file
from raypref.schema import (
    COMPARISONS_SCHEMA,
    METADATA_FILE,
    USERS_SCHEMA,
    BadRows,
    ItemsMetadata,
    TablesMetadata,
)

ROW_GROUP_ROWS = 32_768
"""Comparisons of a bucket that are held back to be written together."""

_RECORD = np.dtype(
    [
        ("user", "<i4"),
        ("pair_id", "<i8"),
        ("chosen", "<i8"),
        ("rejected", "<i8"),
        ("split", "i1"),
        ("weight", "<f4"),
        ("timestamp", "<f8"),
    ]
)
"""What the fingerprint sees of a comparison."""


class TableWriter:
    """Writes buckets of comparisons, then the users, then the metadata, into a folder not yet in use.

    Rows may come in pieces; each bucket's in the order they shall have. The fingerprint is the sha256 of the
    buckets' sha256, each over its comparisons as fixed-width records, so pieces do not matter.
    """

    def __init__(self, directory: Path, buckets: int) -> None:
        """Begin tables of `buckets` comparison files in `directory`."""
        self._directory = directory
        self._buckets = buckets
        self._digests = [hashlib.sha256() for _ in range(buckets)]
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(buckets)]
        self._open: dict[int, pq.ParquetWriter] = {}
        self._users = 0
        self._rows = 0
        self._comparisons = {f"{cohort}/{split}": 0 for cohort in ("seen", "unseen") for split in SPLITS}
        (directory / COMPARISONS_FOLDER).mkdir()
        self._users_writer = pq.ParquetWriter(directory / USERS_FILE, USERS_SCHEMA)

    def comparisons(self, bucket: int, columns: dict[str, np.ndarray]) -> None:
        """Append comparisons to a bucket: the columns of the schema, `split` as its code."""
        record = np.empty(len(columns["user"]), _RECORD)
        for name in _RECORD.names or ():
            record[name] = columns[name]
        self._digests[bucket].update(record.tobytes())
        waiting = self._waiting[bucket]
        waiting.append(record)
        if sum(map(len, waiting)) >= ROW_GROUP_ROWS:
            self._flush(bucket)

    def close_bucket(self, bucket: int) -> None:
        """Finish a bucket's file, which is empty when no comparison was given."""
        self._flush(bucket)
        self._open.pop(bucket).close()

    def _flush(self, bucket: int) -> None:
        record = np.concatenate([np.empty(0, _RECORD), *self._waiting[bucket]])
        self._waiting[bucket].clear()
        stamp = record["timestamp"]
        arrays = [pa.array(record[name]) for name in ("user", "pair_id", "chosen", "rejected")]
        arrays += [
            pa.DictionaryArray.from_arrays(pa.array(record["split"]), pa.array(SPLITS)).cast(pa.string()),
            pa.array(record["weight"]),
            pa.array(stamp, mask=np.isnan(stamp)),
        ]
        if bucket not in self._open:
            path = self._directory / COMPARISONS_FOLDER / bucket_file(bucket)
            self._open[bucket] = pq.ParquetWriter(path, COMPARISONS_SCHEMA)
        self._open[bucket].write_table(pa.table(arrays, schema=COMPARISONS_SCHEMA))

    def users(self, user_id: pa.Array, seen: np.ndarray, counts: np.ndarray) -> None:
        """Append users in the order of their numbers.

        Args:
            user_id: their names.
            seen: whether training meets them.
            counts: their comparisons, users × splits in the order of `SPLITS`.
        """
        row = self._rows + np.cumsum(seen) - 1
        number = np.arange(self._users, self._users + len(seen))
        columns: list[Any] = [
            pa.array(number, pa.int32()),
            user_id,
            pa.array(np.where(seen, "seen", "unseen")),
            pa.array(row, pa.int32(), mask=~seen),
            *(pa.array(counts[:, code], pa.int32()) for code in range(len(SPLITS))),
        ]
        self._users_writer.write_table(pa.table(columns, schema=USERS_SCHEMA))
        self._users += len(seen)
        self._rows += int(seen.sum())
        for cohort, chosen in (("seen", seen), ("unseen", ~seen)):
            for split, count in zip(SPLITS, counts[chosen].sum(0), strict=True):
                self._comparisons[f"{cohort}/{split}"] += int(count)

    def finish(
        self, items: ItemsMetadata, bad_rows: dict[str, BadRows], short_users: int, options: dict[str, Any]
    ) -> TablesMetadata:
        """Write the metadata, last, and return it; every bucket must be closed."""
        self._users_writer.close()
        whole = hashlib.sha256(b"".join(digest.digest() for digest in self._digests))
        metadata = TablesMetadata(
            embedder=items.embedder,
            items=items.count,
            fingerprint=whole.hexdigest(),
            buckets=self._buckets,
            seen_users=self._rows,
            unseen_users=self._users - self._rows,
            comparisons=self._comparisons,
            bad_rows=bad_rows,
            short_users=short_users,
            options=options,
        )
        files.write_text(self._directory / METADATA_FILE, metadata.model_dump_json(indent=1) + "\n")
        return metadata
