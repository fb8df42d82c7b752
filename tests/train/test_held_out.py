"""Held-out episodes of a shard, of which there may be none."""

from __future__ import annotations

from typing import Any

import pytest

from raypref.config import RunConfig
from raypref.data.inference import HeldOut
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Tables
from raypref.train.loop import validate
from raypref.train.session import fresh_model

USERS = 10


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    planted: dict[str, Any] = {"dim": 8, "train_prompts": 8, "test_prompts": 4, "seen_users": USERS}
    planted |= {"unseen_users": 2, "comparisons": 6, "shots": 4, "valid": 2}
    raw = {"dir": tmp_path_factory.mktemp("planted"), "method": {"type": "lore"}, "planted": planted}
    config = RunConfig.model_validate(raw)
    write_planted(config.planted, config.items_dir, config.tables_dir)
    return config


def episodes(config: RunConfig, users: int, users_per_batch: int) -> HeldOut:
    tables = Tables.open(config.tables_dir)
    parts = [tables.comparisons("seen", [split]) for split in ("train", "valid")]
    return HeldOut(ItemTable.open(config.items_dir), *parts, users, users_per_batch)


@pytest.mark.parametrize(("users", "sizes"), [(USERS, [4, 4, 2]), (8, [4, 4]), (1, [1]), (0, [])])
def test_users_come_in_batches(config: RunConfig, users: int, sizes: list[int]) -> None:
    held = episodes(config, users, 4)
    for _ in range(2):
        batches = list(held)
        assert [len(batch.user_B) for batch in batches] == sizes
        assert len(held) == len(sizes)
        for batch in batches:
            assert len(batch.context.mask_BP) == len(batch.target.mask_BP) == len(batch.user_B)


def test_a_shard_that_holds_nobody_out_leaves_the_figures_alone(config: RunConfig) -> None:
    model = fresh_model(config, ItemTable.open(config.items_dir), Tables.open(config.tables_dir))
    alone = validate([model], [episodes(config, USERS, 4)])
    assert validate([model, model], [episodes(config, USERS, 4), episodes(config, 0, 4)]) == alone
