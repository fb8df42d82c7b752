"""From preferences to tables: read once, spill by bucket of users, split, check, write."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypref import files
from raypref.config import RunConfig
from raypref.data.forming import SEEN, UNSEEN, Columns, Former, keep_honest, take
from raypref.data.items import ItemTable
from raypref.data.rows import ComparisonRows, RatingRows, RowTally
from raypref.data.sources import Source, render
from raypref.data.splits import COLD, SPLITS, TRAIN, WARM, Splitter, keys_of
from raypref.data.writer import TableWriter
from raypref.errors import InputError
from raypref.schema import METADATA_FILE, TablesMetadata, canonical_text, content_hash


def prepare(config: RunConfig) -> TablesMetadata:
    """Split and lay out the comparisons of an input as tables, all or nothing.

    The input is read once and spilled by bucket; each bucket is then split, and written once it is known
    which items train. Memory holds one bucket at a time, and a byte for each item. The result depends on the
    items table and the set of rows, not on their order, but of equally old ratings of one thing by one user
    the last counts.

    Raises:
        InputError: the input is unreadable or too often bad, names texts that the items table lacks, or
            leaves too few comparisons.
    """
    items = ItemTable.open(config.items_dir)
    target = config.tables_dir
    with (
        files.new_directory(target, METADATA_FILE) as directory,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.spill.") as spill,
    ):
        return _Preparation(config, items, Path(spill)).write(directory)


class _Preparation:
    def __init__(self, config: RunConfig, items: ItemTable, spill: Path) -> None:
        self.config = config
        self.items = items
        self.source = Source(config.input)
        self.splitter = Splitter(config.prepare)
        self.tally = RowTally()
        self.trained = np.zeros(len(items), np.uint8)
        self.spill = spill
        self.users = 0
        self.short_users = 0

    def write(self, directory: Path) -> TablesMetadata:
        self._read()
        buckets = range(self.config.prepare.buckets)
        for bucket in buckets:
            self._form(bucket)
        self._check_users()
        writer = TableWriter(directory, self.config.prepare.buckets)
        next_user = next_pair = 0
        for bucket in buckets:
            next_user, next_pair = self._finish(writer, bucket, next_user, next_pair)
        bad = {**self.source.bad.kinds, **self.tally.kinds}
        options = {name: getattr(self.config, name).model_dump(mode="json") for name in ("input", "prepare")}
        return writer.finish(self.items.metadata, bad, self.short_users, options)

    def _read(self) -> None:
        """Spill every good row to its user's bucket, texts replaced by item ids."""
        unknown = RowTally()
        for batch in self.source.batches():
            columns = _address(batch, self.items)
            if self.config.prepare.unit == "group":
                columns["group_key"] = self._group_key(batch)
            sides = [columns[name] for name in ("item", "chosen", "rejected") if name in columns]
            unknown.add("unknown", columns["row"][np.min(sides, axis=0) < 0])
            bucket = self.splitter.bucket(columns["user_key"])
            table = pa.table({"user_id": pa.array(batch.user_id, pa.string()), **columns})
            order = np.argsort(bucket, kind="stable")
            table, bucket = table.take(pa.array(order)), bucket[order]
            ends = np.flatnonzero(np.append(bucket[1:] != bucket[:-1], True)) + 1
            for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
                self._append(f"rows-{bucket[start]}", table.slice(start, end - start))
        for bad in unknown.kinds.values():
            raise InputError(
                f"{self.source.path}: {bad.count} rows (first row {bad.first_row}) name texts that the items "
                f"table {self.items.directory} does not have; run `raypref embed` on this input."
            )

    def _group_key(self, batch: ComparisonRows | RatingRows) -> np.ndarray:
        names = [group for group in batch.group if group is not None]
        if len(names) < len(batch.group):
            raise InputError(
                f"{self.source.path}: row {batch.row[batch.group.index(None)]} has no group, and "
                "prepare.unit=group holds out whole groups. Name one (a text or a whole number, such as a "
                "conversation's id) in column `group` of every row, or set prepare.unit to item or prompt."
            )
        return keys_of([content_hash(name) for name in names])

    def _form(self, bucket: int) -> None:
        """Spill the bucket's users who have enough comparisons, and their comparisons, split."""
        table = self._load(f"rows-{bucket}")
        if table is None:
            return
        rows, user_id, seen = self._number(table)
        former = Former(self.config.prepare, self.config.input.min_rating_gap, self.tally)
        formed = former.ratings(rows) if "rating" in rows else former.comparisons(rows)
        counts = _counts(formed, len(user_id))
        keep = counts[:, TRAIN] >= self.config.prepare.min_train
        keep &= counts[:, WARM] + counts[:, COLD] >= self.config.prepare.min_heldout
        self.users += len(user_id)
        self.short_users += int((~keep).sum())
        formed = take(formed, keep[formed["user"]])
        formed["user"] = (np.cumsum(keep) - 1)[formed["user"]]
        seen = seen[keep]
        train = take(formed, formed["split"] == TRAIN)
        for cohort, mark in ((seen, SEEN), (~seen, UNSEEN)):
            for side in ("chosen", "rejected"):
                self.trained[train[side][cohort[train["user"]]]] |= mark
        self._append(f"users-{bucket}", pa.table({"user_id": user_id.filter(pa.array(keep)), "seen": seen}))
        self._append(f"formed-{bucket}", pa.table(formed))

    def _number(self, table: pa.Table) -> tuple[Columns, pa.Array, np.ndarray]:
        """Return the rows with a user number, the users' names and whether they are seen."""
        coded = table["user_id"].combine_chunks().dictionary_encode()
        code = coded.indices.to_numpy()
        rows = {name: table[name].to_numpy() for name in table.column_names if name != "user_id"}
        user_key = np.empty(len(coded.dictionary), np.uint64)
        user_key[code] = rows["user_key"]
        names = coded.dictionary.to_numpy(zero_copy_only=False)
        order = np.lexsort((names, self.splitter.keyed("number", user_key)))
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order))
        seen = self.splitter.seen(user_key)
        return {**rows, "user": number[code], "seen": seen[code]}, coded.dictionary.take(order), seen[order]

    def _check_users(self) -> None:
        options = self.config.prepare
        kept = self.users - self.short_users
        advice = (
            f"{self.source.path}: {self.short_users} of {self.users} users have fewer than "
            f"{options.min_train} training (prepare.min_train) or {options.min_heldout} held-out comparisons "
            "(prepare.min_heldout)"
        )
        if not kept:
            raise InputError(f"{advice}; no user is left. Lower these, or give more comparisons a user.")
        if self.short_users > options.max_short_user_share * self.users:
            raise InputError(
                f"{advice}, more than prepare.max_short_user_share={options.max_short_user_share}. "
                "Lower the first two, raise the last, or hold out less."
            )

    def _finish(self, writer: TableWriter, bucket: int, next_user: int, next_pair: int) -> tuple[int, int]:
        """Write a bucket whose first user and pair have these numbers; return the next ones."""
        users, formed = self._load(f"users-{bucket}"), self._load(f"formed-{bucket}")
        if users is None or formed is None:
            writer.close_bucket(bucket)
            return next_user, next_pair
        rows = {name: formed[name].to_numpy() for name in formed.column_names}
        rows = keep_honest(rows, self.trained, len(self.items), self.tally)
        count = len(rows["user"])
        pair_id = np.arange(next_pair, next_pair + count)
        writer.comparisons(bucket, {**rows, "user": rows["user"] + next_user, "pair_id": pair_id})
        writer.close_bucket(bucket)
        writer.users(
            users["user_id"].combine_chunks(), users["seen"].to_numpy(), _counts(rows, users.num_rows)
        )
        return next_user + users.num_rows, next_pair + count

    def _append(self, name: str, table: pa.Table) -> None:
        with (self.spill / name).open("ab") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)

    def _load(self, name: str) -> pa.Table | None:
        path = self.spill / name
        if not path.exists():
            return None
        with pa.OSFile(str(path)) as file:
            return pa.concat_tables(list(_streams(file))).combine_chunks()


def _streams(file: pa.NativeFile) -> Iterator[pa.Table]:
    """Yield the tables of a file to which one stream after the other was appended."""
    while file.tell() < file.size():
        yield pa.ipc.open_stream(file).read_all()


def _address(batch: ComparisonRows | RatingRows, items: ItemTable) -> Columns:
    """Return a batch with names hashed and texts looked up in the items table."""
    template = items.metadata.embedder.template
    hashes = [content_hash(render(template, prompt, response)) for prompt, response in batch.items()]
    item, item_key = items.rows_of(hashes), keys_of(hashes)
    columns = {
        "row": np.array(batch.row, np.int64),
        "user_key": keys_of([content_hash(name) for name in batch.user_id]),
        "prompt_key": keys_of([content_hash(canonical_text(prompt)) for prompt in batch.prompt]),
        "timestamp": np.array(batch.timestamp),
    }
    if isinstance(batch, RatingRows):
        return {**columns, "item": item, "item_key": item_key, "rating": np.array(batch.rating)}
    return {
        **columns,
        "chosen": item[::2],
        "rejected": item[1::2],
        "chosen_key": item_key[::2],
        "rejected_key": item_key[1::2],
        "weight": np.array(batch.weight, np.float32),
    }


def _counts(rows: Columns, users: int) -> np.ndarray:
    """Return the number of comparisons of each user, users × splits."""
    cell = rows["user"] * len(SPLITS) + rows["split"]
    return np.bincount(cell, minlength=users * len(SPLITS)).reshape(users, len(SPLITS))
