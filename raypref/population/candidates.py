"""What is to be scored: one list of responses for everybody, or every user's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref import files
from raypref.data.items import ItemTable
from raypref.data.sources import render
from raypref.errors import InputError
from raypref.population.plan import Group, user_groups
from raypref.schema import content_hash

TEXT_COLUMNS = ("prompt", "response")


@dataclass(frozen=True)
class Candidates:
    """The responses to score, checked against the items table."""

    identity: str
    """sha256 of the files."""
    list_N: np.ndarray | None
    """Item ids, int64, the same for everybody; None where every user has their own."""
    groups: tuple[Group, ...] = ()
    """Row groups of every user's own."""

    @classmethod
    def open(cls, path: Path, items: ItemTable, users: int) -> Candidates:
        """Open a Parquet file, or a folder of them in the order of their names.

        With a column `user` (numbers of the users table, sorted) every user has their own candidates, in
        `item_id`. Without, it is one list for everybody: `item_id`, or `prompt` and `response`, which are
        looked up in the items table by their text.

        Raises:
            InputError: there is no such file, a column is missing, or an item or a user is unknown.
            CorruptError: a file cannot be read, or is not sorted by user.
        """
        paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not paths or not all(one.is_file() for one in paths):
            raise InputError(f"{path}: no Parquet file of candidates here (population.candidates).")
        identity = ",".join(files.sha256(one) for one in paths)
        names = _columns(paths)
        if "user" not in names:
            return cls(identity, _list(paths, names, items))
        if "item_id" not in names:
            raise InputError(f"{path}: every user's own candidates need a column `item_id` beside `user`.")
        for one in paths:
            _require_items(one, items)
        groups = tuple(user_groups(paths))
        if not groups:
            raise InputError(f"{path}: holds no candidates.")
        if groups[0].first_user < 0 or groups[-1].last_user >= users:
            raise InputError(
                f"{path}: candidates of users {groups[0].first_user} to {groups[-1].last_user}; the tables "
                f"have users 0 to {users - 1}. `user` is the number in the tables' users.parquet."
            )
        return cls(identity, None, groups)


def _columns(paths: Iterable[Path]) -> set[str]:
    found: set[str] | None = None
    for path in paths:
        try:
            names = set(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not readable as Parquet ({error}).") from error
        found = names if found is None else found & names
    return found or set()


def _list(paths: list[Path], names: set[str], items: ItemTable) -> np.ndarray:
    folder = paths[0] if len(paths) == 1 else paths[0].parent
    if "item_id" in names:
        table = pa.concat_tables([pq.read_table(path, columns=["item_id"]) for path in paths])
        if not pa.types.is_integer(table.schema.field("item_id").type) or table["item_id"].null_count:
            raise InputError(f"{folder}: `item_id` must be whole numbers, none missing.")
        ids_N = table["item_id"].to_numpy().astype(np.int64)
        unknown_N = (ids_N < 0) | (ids_N >= len(items))
    elif names.issuperset(TEXT_COLUMNS):
        table = pa.concat_tables([pq.read_table(path, columns=list(TEXT_COLUMNS)) for path in paths])
        template = items.metadata.embedder.template
        texts = zip(*(table[name].to_pylist() for name in TEXT_COLUMNS), strict=True)
        ids_N = items.rows_of([content_hash(render(template, *text)) for text in texts])
        unknown_N = ids_N < 0
    else:
        raise InputError(f"{folder}: candidates need a column `item_id`, or `prompt` and `response`.")
    if not len(ids_N):
        raise InputError(f"{folder}: holds no candidates.")
    if unknown_N.any():
        row = int(np.argmax(unknown_N))
        raise InputError(
            f"{folder}: {int(unknown_N.sum())} candidates are not in {items.directory}, first in row {row}; "
            f"it has items 0 to {len(items) - 1}. Embed new texts with `raypref embed` first."
        )
    return ids_N


def _require_items(path: Path, items: ItemTable) -> None:
    """Refuse unknown items by the file's statistics; without them, by its rows."""
    with pq.ParquetFile(path) as parquet:
        column = parquet.schema_arrow.get_field_index("item_id")
        if not pa.types.is_integer(parquet.schema_arrow.field(column).type):
            raise InputError(f"{path}: `item_id` must be whole numbers.")
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            statistics = group.column(column).statistics
            if statistics is None or not statistics.has_min_max or not statistics.has_null_count:
                raise InputError(f"{path}: has no statistics of `item_id`; write it with them.")
            if statistics.null_count or statistics.min < 0 or statistics.max >= len(items):
                raise InputError(
                    f"{path}: row group {number} names items {statistics.min} to {statistics.max}, or none; "
                    f"{items.directory} has 0 to {len(items) - 1}."
                )
