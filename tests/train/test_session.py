from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from raypref.checkpoint import build
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Tables
from raypref.methods.base import RewardModel
from raypref.methods.bt import BT
from raypref.train import session
from raypref.train.session import FirstUsers, Session, fresh_model
from raypref.train.shards import Shards
from raypref.types import Dims, Episodes

USERS = 40


def configured(folder: Path, method: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {
        "dir": str(folder),
        "items": str(folder / "items"),
        "tables": str(folder / "tables"),
        # Eight prompts of three responses have 24 pairs: many users judge each.
        "planted": {"dim": 16, "train_prompts": 8, "test_prompts": 4, "responses": 3, "rewards": 2}
        | {"seen_users": USERS, "unseen_users": 8, "comparisons": 9, "shots": 4, "valid": 2},
        "method": method,
    }
    return parse_config(raw, [], "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    write_planted(configured(folder, {"type": "bt"}).planted, folder / "items", folder / "tables", buckets=4)
    return folder


def opened(folder: Path) -> tuple[ItemTable, Tables]:
    return ItemTable.open(folder / "items"), Tables.open(folder / "tables")


def test_a_model_may_see_all_seen_users_before_its_first_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[Episodes]] = []

    def prime(self: RewardModel, seen: Iterable[Episodes]) -> None:
        shown.extend([list(seen), list(seen)])

    monkeypatch.setattr(BT, "prime", prime)
    items, tables = opened(folder)
    fresh_model(configured(folder, {"type": "bt"}), items, tables)
    first, again = shown
    rows = torch.cat([episodes.user_B for episodes in first])
    assert sorted(rows.tolist()) == list(range(USERS))
    assert all(episodes.context.mask_BP.shape == (len(episodes.user_B), 0) for episodes in first)
    assert sum(episodes.target.comparisons for episodes in first) == tables.metadata.comparisons["seen/train"]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.user_B, other.user_B)
        assert torch.equal(one.target.chosen_BPD, other.target.chosen_BPD)


def test_a_model_sees_a_bounded_number_of_users_and_buckets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, tables = opened(folder)
    whole = torch.cat([episodes.user_B for episodes in FirstUsers(items, tables, 1000)])
    read: list[Any] = []
    comparisons = Tables.comparisons

    def recorded(self: Tables, *arguments: Any) -> Any:
        read.append(arguments[2])
        return comparisons(self, *arguments)

    monkeypatch.setattr(Tables, "comparisons", recorded)
    some = torch.cat([episodes.user_B for episodes in FirstUsers(items, tables, 15)])
    assert torch.equal(some, whole[:15])
    assert read == [[0], [1]]


def test_a_method_that_draws_its_start_reads_no_comparison(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tables, "comparisons", None)
    monkeypatch.setattr(session, "contexts", None)
    items, tables = opened(folder)
    model = fresh_model(configured(folder, {"type": "bt"}), items, tables)
    assert float(model.scale) > 0


def test_every_worker_starts_from_the_same_shared_pairs(folder: Path) -> None:
    config = configured(folder, {"type": "pref", "bases": 2})
    items, tables = opened(folder)
    alone = fresh_model(config, items, tables).state_dict()
    drawn = build(config.method, Dims(16, USERS), config.train.seed).state_dict()
    assert not torch.equal(alone["bases_DK"], drawn["bases_DK"])
    for rank in range(2):
        learn = tables.comparisons("seen", ["train"], tables.shard(rank, 2))
        worker = Session(config, items, tables, torch.device("cpu"), Shards(2, rank, 2))
        for name, value in worker.state.model.state_dict().items():
            expected = alone[name][learn.row_U] if name == "rows_UK" else alone[name]
            assert torch.equal(value, expected), name
