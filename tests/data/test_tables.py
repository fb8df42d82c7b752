from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypref.data.tables import USERS_FILE, Comparisons, Tables
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.schema import METADATA_FILE
from tests.data.corpus import comparisons, prepared


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return prepared(tmp_path, comparisons(30))


def batch(user: list[int], pair: list[int]) -> dict[str, np.ndarray]:
    return {
        "user": np.array(user, np.int32),
        "pair_id": np.array(pair),
        "chosen": np.array(pair) * 2,
        "rejected": np.array(pair) * 2 + 1,
        "weight": np.ones(len(user)),
    }


def same(left: Comparisons, right: Comparisons) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name), equal_nan=name == "timestamp_M")
        for name in vars(left)
        if getattr(left, name) is not None or getattr(right, name) is not None
    )


def test_cohorts_and_splits_partition_the_comparisons(tables: Tables) -> None:
    parts = [
        tables.comparisons(cohort, [split])
        for cohort in ("seen", "unseen")
        for split in ("train", "valid", "warm", "cold")
    ]
    whole = tables.comparisons(None, ["train", "valid", "warm", "cold"])
    assert len(whole) == sum(tables.metadata.comparisons.values())
    assert same(Comparisons.concatenate(parts), whole)
    assert all((part.row_U >= 0).all() for part in parts[:4])
    assert all((part.row_U == -1).all() for part in parts[4:])
    assert [len(part) for part in parts] == list(tables.metadata.comparisons.values())


def test_comparisons_agree_with_the_users_table(tables: Tables) -> None:
    train = tables.comparisons("seen", ["train"])
    users = tables.users.filter(np.isin(np.arange(tables.users.num_rows), train.user_U)).to_pylist()
    assert [user["train"] for user in users] == train.counts_U.tolist()
    assert [user["row"] for user in users] == train.row_U.tolist() == sorted(train.row_U)
    assert (np.diff(train.user_U) > 0).all()
    assert train.timestamp_M is not None
    assert np.isnan(train.timestamp_M).all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shards_partition_the_users(tables: Tables, world_size: int) -> None:
    shards = [tables.comparisons("seen", ["train"], tables.shard(r, world_size)) for r in range(world_size)]
    assert same(Comparisons.concatenate(shards), tables.comparisons("seen", ["train"]))
    assert sum(len(shard.user_U) for shard in shards) == tables.metadata.seen_users


def test_more_workers_than_buckets_is_an_error(tables: Tables) -> None:
    with pytest.raises(InputError, match="4 buckets for 5 workers"):
        tables.shard(0, 5)


def test_batches_may_come_in_any_order_and_form(tables: Tables) -> None:
    whole = tables.comparisons(None, ["train", "valid", "warm", "cold"])
    table = pq.read_table(tables.files())
    pieces = table.take(np.random.default_rng(0).permutation(table.num_rows)).to_batches(max_chunksize=17)
    mixed = [pieces[0], *({name: p[name].to_numpy(False) for name in p.schema.names} for p in pieces[1:])]
    assert same(Comparisons.from_batches(mixed, tables.rows), whole)


def test_batches_that_overlap_or_name_strangers_are_refused() -> None:
    rows = np.arange(3)
    with pytest.raises(CorruptError, match="twice"):
        Comparisons.from_batches([batch([0, 1], [0, 1]), batch([1], [1])], rows)
    with pytest.raises(CorruptError, match="user 3"):
        Comparisons.from_batches([batch([3], [0])], rows)


def test_no_batches_are_no_comparisons() -> None:
    for none in (Comparisons.from_batches([], np.zeros(0)), Comparisons.concatenate([])):
        assert len(none) == len(none.user_U) == len(none.counts_U) == 0
        assert none.select(np.array([4, 2])).counts_U.tolist() == [0, 0]


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 9), unique=True))
def test_selecting_keeps_order_and_gaps(user: list[int], wanted: list[int]) -> None:
    whole = Comparisons.from_batches([batch(user, list(range(len(user))))], np.arange(10) - 5)
    part = whole.select(np.array(wanted, int))
    assert part.user_U.tolist() == wanted
    for place, number in enumerate(wanted):
        mine = slice(*part.offsets[place : place + 2])
        assert part.pair_M[mine].tolist() == [pair for pair, each in enumerate(user) if each == number]
        assert part.row_U[place] == (number - 5 if number in user else -1)
    assert (part.chosen_M == part.pair_M * 2).all()


def test_truncated_and_missing_files_are_corrupt(tables: Tables) -> None:
    folder = tables.directory
    for path in (tables.files()[1], folder / USERS_FILE):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(CorruptError, match=path.name):
            Tables.open(folder)
        path.unlink()
        with pytest.raises(CorruptError, match=path.name):
            Tables.open(folder)
        path.write_bytes(data)
    assert Tables.open(folder).metadata == tables.metadata


def test_damage_inside_a_file_is_corrupt(tables: Tables) -> None:
    path = tables.files()[0]
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=path.name):
        Tables.open(tables.directory).comparisons("seen", ["train"])


def test_counts_and_columns_must_match_the_metadata(tables: Tables) -> None:
    first, second = tables.files()[:2]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptError, match="comparisons, not what the metadata says"):
        Tables.open(tables.directory)
    first.write_bytes((tables.directory / USERS_FILE).read_bytes())
    with pytest.raises(CorruptError, match="columns"):
        Tables.open(tables.directory)
    first.write_bytes(data)
    users = pq.read_table(tables.directory / USERS_FILE)
    pq.write_table(users.slice(1), tables.directory / USERS_FILE)
    with pytest.raises(CorruptError, match="users, not what the metadata says"):
        Tables.open(tables.directory)


def test_unfinished_or_other_tables_are_refused(tables: Tables) -> None:
    path = tables.directory / METADATA_FILE
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "schema_version": 99}))
    with pytest.raises(MismatchError, match="99"):
        Tables.open(tables.directory)
    path.unlink()
    with pytest.raises(InputError, match="no finished table"):
        Tables.open(tables.directory)
