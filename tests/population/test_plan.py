from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypref.data.tables import Tables
from raypref.errors import CorruptError
from raypref.population.plan import Part, Span, plan_users, user_groups
from raypref.population.reading import PartReader, offsets_of, read_rows
from tests.population.world import USERS


@pytest.mark.parametrize("users_per_part", [1, 7, 20, 100, 10_000])
def test_parts_hold_every_user_and_every_comparison_once(planted: Path, users_per_part: int) -> None:
    tables = Tables.open(planted / "tables")
    parts = plan_users(tables, users_per_part)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [parts[0].first_user, parts[-1].end_user] == [0, USERS]
    assert all(one.end_user == two.first_user for one, two in pairwise(parts))
    assert all(part.users >= min(users_per_part, 10) for part in parts[:-1])
    reader = PartReader(tables.directory, ["train", "cold"])
    whole = tables.comparisons(None, ["train", "cold"])
    names: list[str] = []
    pairs: list[np.ndarray] = []
    for part in parts:
        users = reader.users(part)
        own = reader.comparisons(part, users)
        names += users["user_id"].to_pylist()
        expected = whole.select(np.arange(part.first_user, part.end_user))
        for name in ("user_U", "row_U", "offsets", "pair_M", "chosen_M", "rejected_M", "weight_M"):
            np.testing.assert_array_equal(getattr(own, name), getattr(expected, name))
        pairs.append(own.pair_M)
    assert names == tables.users["user_id"].to_pylist()
    np.testing.assert_array_equal(np.sort(np.concatenate(pairs)), np.sort(whole.pair_M))


def test_the_plan_does_not_move_when_it_is_made_again(planted: Path) -> None:
    tables = Tables.open(planted / "tables")
    assert plan_users(tables, 20) == plan_users(Tables.open(planted / "tables"), 20)


def sorted_file(path: Path, users: list[int], group_rows: int) -> Path:
    table = pa.table(
        {"user": pa.array(users, pa.int32()), "item_id": pa.array(range(len(users)), pa.int64())}
    )
    pq.write_table(table, path, row_group_size=group_rows)
    return path


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    group_rows=st.integers(1, 5),
    cuts=st.sets(st.integers(0, 12)),
)
@settings(max_examples=60, deadline=None)
def test_users_that_cross_row_groups_are_read_whole(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], group_rows: int, cuts: set[int]
) -> None:
    users = np.repeat(np.arange(len(counts)), counts)
    path = sorted_file(tmp_path_factory.mktemp("groups") / "rows.parquet", users.tolist(), group_rows)
    groups = list(user_groups([path]))
    borders = sorted({0, len(counts), *(cut for cut in cuts if cut < len(counts))})
    for first, end in pairwise(borders):
        spans = [
            Span(path, group.number, group.number + 1)
            for group in groups
            if group.first_user < end and group.last_user >= first
        ]
        part = Part(0, first, end, tuple(spans))
        found = read_rows(spans, ["item_id"], part)
        expected = np.flatnonzero((users >= first) & (users < end))
        np.testing.assert_array_equal(found["item_id"].to_numpy(), expected)
        np.testing.assert_array_equal(np.diff(offsets_of(found["user"].to_numpy(), part)), counts[first:end])


def test_users_without_comparisons_are_in_a_part_too(planted: Path) -> None:
    tables = Tables.open(planted / "tables")
    part = plan_users(tables, 20)[1]
    reader = PartReader(tables.directory, ["warm"])
    assert reader.comparisons(part, reader.users(part)).counts_U.tolist() == [0] * part.users


def test_rows_that_are_not_sorted_are_refused(tmp_path: Path) -> None:
    path = sorted_file(tmp_path / "rows.parquet", [0, 3, 1], 3)
    with pytest.raises(CorruptError, match="not sorted by user"):
        read_rows([Span(path, 0, 1)], [], Part(0, 0, 4, ()))
    with pytest.raises(CorruptError, match="users 1 to 1 come after user 3"):
        list(user_groups([sorted_file(tmp_path / "groups.parquet", [0, 3, 1], 2)]))
    with pytest.raises(CorruptError, match="come after user 3"):
        list(user_groups([path, path]))
