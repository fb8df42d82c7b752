from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypref.config import PlantedConfig
from raypref.data import planting
from raypref.data.items import ItemTable
from raypref.data.planted import embed, item_block, plant, true_rewards, user_block
from raypref.data.planting import planted_embedder, write_planted
from raypref.data.splits import SPLITS
from raypref.data.tables import Tables

SMALL = PlantedConfig(
    dim=16, train_prompts=60, test_prompts=20, seen_users=13, unseen_users=7, comparisons=9, shots=4, valid=2
)


def test_tables_hold_the_planted_comparisons(tmp_path: Path) -> None:
    metadata = write_planted(SMALL, tmp_path / "items", tmp_path / "tables", buckets=3)
    tables, items = Tables.open(tmp_path / "tables"), ItemTable.open(tmp_path / "items")
    world = plant(SMALL)
    assert metadata == tables.metadata
    assert metadata.embedder == items.metadata.embedder == planted_embedder(SMALL)
    assert metadata.comparisons == {
        "seen/train": 13 * 9,
        "seen/valid": 13 * 2,
        "seen/warm": 0,
        "seen/cold": 13 * 50,
        "unseen/train": 7 * 4,
        "unseen/valid": 0,
        "unseen/warm": 0,
        "unseen/cold": 7 * 50,
    }
    emb_ND = embed(world, item_block(world, 0))
    assert np.array_equal(items.gather(np.arange(len(items))), emb_ND)
    block = user_block(world, true_rewards(world), 0)
    name = np.array(tables.users["user_id"].to_pylist(), int)
    assert sorted(name) == list(range(20))
    whole = tables.comparisons(None, SPLITS)
    assert np.array_equal(whole.pair_M, np.arange(len(whole)))
    for number, index in enumerate(name):
        own = whole.select(np.array([number]))
        assert np.array_equal(own.chosen_M, block.chosen[block.user == index])
        assert np.array_equal(own.rejected_M, block.rejected[block.user == index])
        assert (tables.rows[number] >= 0) == (index < 13)


def test_every_bucket_has_its_part_of_the_seen_users(tmp_path: Path) -> None:
    write_planted(SMALL, tmp_path / "items", tmp_path / "tables", buckets=4)
    tables = Tables.open(tmp_path / "tables")
    seen = [len(tables.comparisons("seen", ["train"], [bucket]).user_U) for bucket in range(4)]
    assert seen == [4, 3, 3, 3]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        write_planted(SMALL, folder / "items", folder / "tables", buckets=2)
    written = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    assert written[0] == written[1]
    other = write_planted(SMALL.model_copy(update={"seed": 1}), tmp_path / "c", tmp_path / "d", buckets=2)
    assert other.fingerprint != Tables.open(folders[0] / "tables").metadata.fingerprint
    assert other.embedder.revision != planted_embedder(SMALL).revision


def test_an_interrupted_write_leaves_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planting, "comparisons", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_planted(SMALL, tmp_path / "run" / "items", tmp_path / "run" / "tables")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["items"]
