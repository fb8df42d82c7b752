"""What a worker reads of one part: its users' names, their comparisons, their candidates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref.data.tables import USERS_FILE, Comparisons
from raypref.errors import CorruptError
from raypref.population.plan import Part, Span
from raypref.schema import Split


def read_rows(spans: Sequence[Span], columns: Sequence[str], part: Part) -> dict[str, pa.ChunkedArray]:
    """Return columns of the rows of a part's users, sorted by user, and `user` with them.

    Raises:
        CorruptError: a file cannot be read, or is not sorted.
    """
    tables: list[pa.Table] = []
    names = ["user", *columns]
    coded = [name for name in columns if name == "split"]
    for span in spans:
        try:
            with pq.ParquetFile(span.path, read_dictionary=coded) as parquet:
                groups = list(range(span.first, span.end))
                table = parquet.read_row_groups(groups, columns=names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(f"{span.path}: cannot be read ({error}); make it again.") from error
        user_M = table["user"].to_numpy()
        if np.any(user_M[1:] < user_M[:-1]):
            raise CorruptError(f"{span.path}: rows are not sorted by user; make it again.")
        start, end = np.searchsorted(user_M, [part.first_user, part.end_user])
        tables.append(table.slice(start, end - start))
    if not tables:
        return {name: pa.chunked_array([pa.array([], pa.int64())]) for name in names}
    table = pa.concat_tables(tables)
    return {name: table[name] for name in names}


def offsets_of(user_M: np.ndarray, part: Part) -> np.ndarray:
    """Return where each user of a part begins among rows sorted by user, and their number: int64 (U + 1)."""
    return np.searchsorted(user_M, np.arange(part.first_user, part.end_user + 1)).astype(np.int64)


class PartReader:
    """Reads the users and comparisons of parts of one prepared folder; keeps its footer open."""

    def __init__(self, directory: Path, splits: Sequence[Split]) -> None:
        """Open the users table, and read comparisons of `splits` only.

        Raises:
            CorruptError: it cannot be read.
        """
        self._splits = list(splits)
        self._path = directory / USERS_FILE
        try:
            self._users = pq.ParquetFile(self._path)
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(
                f"{self._path}: cannot be read ({error}); prepare the tables again."
            ) from error
        footer = self._users.metadata
        rows = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        self._first_G = np.concatenate(([0], np.cumsum(rows)))

    def users(self, part: Part) -> pa.Table:
        """Return `user`, `user_id` and `row` of a part's users.

        Raises:
            CorruptError: the file cannot be read, or is not numbered densely.
        """
        first, last = (
            int(np.searchsorted(self._first_G, user, side="right")) - 1
            for user in (part.first_user, part.end_user - 1)
        )
        try:
            table = self._users.read_row_groups(
                list(range(first, last + 1)), columns=["user", "user_id", "row"], use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(
                f"{self._path}: cannot be read ({error}); prepare the tables again."
            ) from error
        table = table.slice(part.first_user - int(self._first_G[first]), part.users)
        if not np.array_equal(table["user"].to_numpy(), np.arange(part.first_user, part.end_user)):
            raise CorruptError(f"{self._path}: users are not numbered from 0; prepare the tables again.")
        return table

    def comparisons(self, part: Part, users: pa.Table) -> Comparisons:
        """Return the comparisons of a part's users, of all of them: also of those who made none."""
        columns = read_rows(
            part.spans, ["pair_id", "chosen", "rejected", "split", "weight", "timestamp"], part
        )
        kept = self._kept(columns.pop("split"))
        column = {name: values.to_numpy()[kept] for name, values in columns.items()}
        return Comparisons(
            np.arange(part.first_user, part.end_user),
            users["row"].fill_null(-1).to_numpy().astype(np.int64),
            offsets_of(column["user"], part),
            column["pair_id"],
            column["chosen"],
            column["rejected"],
            column["weight"].astype(np.float32),
            column["timestamp"],
        )

    def _kept(self, split: pa.ChunkedArray) -> np.ndarray:
        if not len(split):
            return np.zeros(0, bool)
        codes = split.unify_dictionaries().combine_chunks()
        return np.isin(codes.dictionary.to_pylist(), self._splits)[codes.indices.to_numpy()]
