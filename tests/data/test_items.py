from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypref.data import items
from raypref.data.items import ItemTable, append_items, write_items
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.schema import METADATA_FILE, Embedder, ItemsMetadata, content_hash, read_metadata

RAW = Embedder(
    model="m", revision="r", pooling="last", normalised=False, template="chat", max_length=8, dim=4
)
UNIT = RAW.model_copy(update={"normalised": True})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYPREF_CACHE", str(folder))
    return folder


def rows(first: int, count: int) -> tuple[list[bytes], np.ndarray]:
    emb_ND = np.random.default_rng(first).normal(size=(count, 4)).astype(np.float16)
    return [content_hash(f"text {i}") for i in range(first, first + count)], emb_ND


def test_a_table_gives_back_what_was_written(tmp_path: Path) -> None:
    parts = [rows(0, 5), rows(5, 1), rows(6, 10)]
    metadata = write_items(tmp_path / "items", RAW, parts)
    table = ItemTable.open(tmp_path / "items")
    assert metadata == table.metadata
    assert len(table) == metadata.count == 16
    expected_ND = np.concatenate([emb_ND for _, emb_ND in parts])
    np.testing.assert_array_equal(table.gather(np.array([15, 0, 0, 7])), expected_ND[[15, 0, 0, 7]])
    hashes = [h for part, _ in parts for h in part]
    np.testing.assert_array_equal(table.rows_of(hashes), np.arange(16))
    assert table.rows_of([content_hash("unknown"), hashes[3]]).tolist() == [-1, 3]
    assert table.rows_of([]).shape == (0,)
    assert table.gather(np.empty(0, np.int64)).shape == (0, 4)


def test_rows_are_regrouped_into_files_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "PART_BYTES", 7 * 4 * 2)
    metadata = write_items(tmp_path / "items", RAW, [rows(0, 5), rows(5, 1), rows(6, 10)])
    assert [part.rows for part in metadata.parts] == [7, 7, 2]
    expected_ND = np.concatenate([rows(0, 5)[1], rows(5, 1)[1], rows(6, 10)[1]])
    np.testing.assert_array_equal(ItemTable.open(tmp_path / "items").gather(np.arange(16)), expected_ND)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16), min_size=2, max_size=30, unique=True))
def test_every_hash_finds_its_row_whatever_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, hashes: list[bytes]
) -> None:
    *known, unknown = hashes
    folder = tmp_path_factory.mktemp("items")
    write_items(folder, RAW, [(known, np.ones((len(known), 4), np.float16))])
    table = ItemTable.open(folder)
    assert table.rows_of([unknown, *known]).tolist() == [-1, *range(len(known))]


def test_a_sample_is_distinct_rows_and_repeats(tmp_path: Path) -> None:
    write_items(tmp_path / "items", RAW, [rows(0, 50)])
    table = ItemTable.open(tmp_path / "items")
    sample_ND = table.sample(20, seed=1)
    assert sample_ND.dtype == np.float16
    assert len(np.unique(sample_ND, axis=0)) == 20
    np.testing.assert_array_equal(sample_ND, table.sample(20, seed=1))
    assert not np.array_equal(sample_ND, table.sample(20, seed=2))
    np.testing.assert_array_equal(table.sample(99, seed=1), rows(0, 50)[1])


def test_appending_keeps_the_ids_and_adds_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    write_items(folder, RAW, [rows(0, 5)])
    old = ItemTable.open(folder)
    append_items(folder, RAW, [rows(5, 3)])
    new = ItemTable.open(folder)
    assert (len(old), len(new)) == (5, 8)
    np.testing.assert_array_equal(new.gather(np.arange(5)), old.gather(np.arange(5)))
    assert new.rows_of(rows(5, 3)[0]).tolist() == [5, 6, 7]
    np.testing.assert_array_equal(new.gather(np.arange(5, 8)), rows(5, 3)[1])


def test_a_failed_append_leaves_the_table_as_it_was_and_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    before = write_items(folder, RAW, [rows(0, 5)])

    def broken():
        yield rows(5, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append_items(folder, RAW, broken())
    assert ItemTable.open(folder).metadata == before
    append_items(folder, RAW, [rows(5, 4)])
    assert len(ItemTable.open(folder)) == 9


def test_a_failed_write_leaves_the_old_table(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    before = write_items(folder, RAW, [rows(0, 5)])
    with pytest.raises(InputError):
        write_items(folder, RAW, [rows(0, 3), rows(2, 3)])
    assert read_metadata(folder, ItemsMetadata) == before
    assert [path.name for path in tmp_path.iterdir()] == ["items"]


@pytest.mark.parametrize(
    ("embedder", "vector", "message"),
    [
        (RAW, [np.nan, 0, 0, 0], "row 6: the embedding is not finite"),
        (RAW, [np.inf, 0, 0, 0], "row 6: the embedding is not finite"),
        (RAW, [0, 0, 0, 0], "row 6: the embedding is zero"),
        (UNIT, [1.02, 0, 0, 0], "row 6: the embedding is not of unit length"),
    ],
)
def test_unusable_vectors_are_refused_by_row(
    tmp_path: Path, embedder: Embedder, vector: list[float], message: str
) -> None:
    good_ND = np.eye(4, dtype=np.float16)[[0, 1, 2, 3]]
    bad_ND = good_ND.copy()
    bad_ND[2] = vector
    with pytest.raises(InputError, match=message):
        write_items(tmp_path / "items", embedder, [(rows(0, 4)[0], good_ND), (rows(4, 4)[0], bad_ND)])
    assert not (tmp_path / "items").exists()


def test_duplicates_and_empty_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows 2 and 3 have the same content hash"):
        write_items(tmp_path / "items", RAW, [rows(0, 3), rows(2, 3)])
    with pytest.raises(InputError, match="at least one item"):
        write_items(tmp_path / "items", RAW, [])
    write_items(tmp_path / "items", RAW, [rows(0, 3)])
    with pytest.raises(InputError, match="row 1 of the new rows is already"):
        append_items(tmp_path / "items", RAW, [([content_hash("new"), *rows(1, 1)[0]], np.ones((2, 4)))])


def test_another_embedder_or_width_is_refused(tmp_path: Path) -> None:
    write_items(tmp_path / "items", RAW, [rows(0, 3)])
    with pytest.raises(MismatchError, match="normalised"):
        append_items(tmp_path / "items", UNIT, [rows(3, 3)])
    with pytest.raises(MismatchError, match="D = 4"):
        append_items(tmp_path / "items", RAW, [(rows(3, 1)[0], np.ones((1, 5), np.float16))])


@pytest.mark.parametrize("ids", [[-1], [3], [0, 1, 10**12]])
def test_ids_out_of_range_are_refused(tmp_path: Path, ids: list[int]) -> None:
    write_items(tmp_path / "items", RAW, [rows(0, 3)])
    with pytest.raises(MismatchError, match="items 0 to 2"):
        ItemTable.open(tmp_path / "items").gather(np.array(ids))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "items"
    name = write_items(folder, RAW, [rows(0, 300)]).parts[0].name
    data = bytearray((folder / name).read_bytes())
    if damage == "delete":
        (folder / name).unlink()
    elif damage == "truncate":
        (folder / name).write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    with pytest.raises(CorruptError, match=name):
        ItemTable.open(folder)


def test_metadata_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    metadata = write_items(folder, RAW, [rows(0, 3)])
    wider = metadata.model_copy(update={"embedder": RAW.model_copy(update={"dim": 5})})
    (folder / METADATA_FILE).write_text(wider.model_dump_json())
    with pytest.raises(CorruptError, match=r"part-000000.parquet: not 3 items of width 5"):
        ItemTable.open(folder)
    (folder / METADATA_FILE).write_text(metadata.model_copy(update={"count": 4}).model_dump_json())
    with pytest.raises(CorruptError, match="do not add up"):
        ItemTable.open(folder)


def test_an_unfinished_table_is_not_a_table(tmp_path: Path) -> None:
    write_items(tmp_path / "items", RAW, [rows(0, 3)])
    (tmp_path / "items" / METADATA_FILE).unlink()
    with pytest.raises(InputError, match="no finished table"):
        ItemTable.open(tmp_path / "items")


def test_a_table_travels_as_its_path(tmp_path: Path) -> None:
    write_items(tmp_path / "items", RAW, [rows(0, 3000)])
    table = ItemTable.open(tmp_path / "items")
    sent = pickle.dumps(table)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).gather(np.arange(9)), table.gather(np.arange(9)))


def test_processes_of_a_node_unpack_a_table_once(tmp_path: Path, cache: Path) -> None:
    write_items(tmp_path / "items", RAW, [rows(0, 3000)])
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        tables = pool.map(ItemTable.open, [tmp_path / "items"] * 6)
    assert {len(table) for table in tables} == {3000}
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1
