from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raypref.checkpoint import Bundle
from raypref.config import RunConfig
from raypref.data.items import ItemTable, write_items
from raypref.errors import ConfigError, CorruptError, InputError, MismatchError
from raypref.methods.base import MethodConfig
from raypref.methods.bt import BTConfig
from raypref.population.adapt import adapt
from raypref.population.candidates import Candidates
from raypref.population.output import OutputMetadata
from raypref.population.score import score
from raypref.population.vectors import PLACES, features_of, rewards_of_list, rewards_of_own
from raypref.schema import content_hash, read_metadata
from tests.population.world import (
    LORE,
    USERS,
    VRF,
    configured,
    contents,
    interrupt,
    parts_of,
    rows,
    save_bundle,
    user_ids,
)

LIST = [7, 3, 3, 250, 0]


def candidates(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=64)
    return path


@pytest.mark.parametrize("method", [VRF, LORE, BTConfig()], ids=lambda method: method.type)
def test_scores_are_the_rewards_of_one_user_at_a_time(
    planted: Path, tmp_path: Path, method: MethodConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypref.population.vectors.PLACES", 16)
    items = ItemTable.open(planted / "items")
    model = Bundle.load(save_bundle(tmp_path / "bundle", items, method)).model
    rng = np.random.default_rng(0)
    counts_U = np.array([0, 3, 1, 0, 40, 2, 2, 0])
    with torch.no_grad():
        width = model.evidence(torch.zeros(1, 16), torch.zeros(1, 16)).shape[1]
        user_UZ = model.infer(torch.rand(len(counts_U), 3, width), torch.ones(len(counts_U), 3))
        item_NF = features_of(model, items, np.array(LIST))
        emb_ND = torch.from_numpy(items.gather(np.array(LIST)))
        alone = [model.reward(model.item(emb_ND)[None], user_Z[None]) for user_Z in user_UZ]
    batches = list(rewards_of_list(model, item_NF, user_UZ))
    assert len(batches) > 1
    mean_UN = np.concatenate([mean_BN for mean_BN, _ in batches])
    expected_UN = torch.cat([one.mean_BN for one in alone]).numpy()
    np.testing.assert_allclose(mean_UN, expected_UN, rtol=1e-4, atol=1e-4)
    stds = [std_BN for _, std_BN in batches if std_BN is not None]
    assert bool(stds) == model.uncertain
    place_M = rng.integers(0, len(LIST), counts_U.sum())
    offsets = np.append(0, np.cumsum(counts_U))
    mean_M, std_M = rewards_of_own(model, item_NF, place_M, offsets, user_UZ)
    user_M = np.repeat(np.arange(len(counts_U)), counts_U)
    np.testing.assert_allclose(mean_M, expected_UN[user_M, place_M], rtol=1e-4, atol=1e-4)
    if stds:
        assert std_M is not None
        std_UN = torch.cat([one.var_BN for one in alone if one.var_BN is not None]).sqrt().numpy()
        np.testing.assert_allclose(np.concatenate(stds), std_UN, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(std_M, std_UN[user_M, place_M], rtol=1e-3, atol=1e-3)
    assert PLACES > 16


@pytest.fixture(scope="module")
def adapted(ray_cluster: None, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYPREF_CACHE", str(planted / "cache"))
        save_bundle(folder / "bundle", ItemTable.open(planted / "items"))
        adapt(configured(folder, planted))
    return folder


def scoring(adapted: Path, planted: Path, folder: Path, path: Path, **population: Any) -> RunConfig:
    config = configured(folder, planted, candidates=str(path), **population)
    return config.model_copy(update={"bundle": adapted / "bundle", "users": adapted / "users"})


@pytest.mark.ray
@pytest.mark.slow
def test_a_list_is_scored_for_every_user(adapted: Path, planted: Path, tmp_path: Path) -> None:
    config = scoring(adapted, planted, tmp_path, candidates(tmp_path / "list.parquet", item_id=LIST))
    assert score(config).made == USERS
    assert score(config).made == 0
    table = parts_of(config.scores_dir)
    assert table["user"].to_pylist() == list(range(USERS))
    assert table["user_id"].to_pylist() == user_ids(planted)
    assert pq.read_table(config.scores_dir / "items.parquet")["item_id"].to_pylist() == LIST
    model = Bundle.load(config.bundle_dir).model
    user_UZ = torch.from_numpy(rows(parts_of(config.users_dir), "vector"))
    emb_ND = torch.from_numpy(ItemTable.open(config.items_dir).gather(np.array(LIST)))
    with torch.no_grad():
        reward = model.reward(model.item(emb_ND).expand(USERS, -1, -1), user_UZ)
    assert reward.var_BN is not None
    np.testing.assert_allclose(rows(table, "mean"), reward.mean_BN, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows(table, "std"), reward.var_BN.sqrt(), rtol=1e-3, atol=1e-3)
    names = [part.name for part in read_metadata(config.scores_dir, OutputMetadata).parts]
    assert names == ["items.parquet", *sorted(names[1:])]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(adapted: Path, planted: Path, tmp_path: Path) -> None:
    path = candidates(tmp_path / "list.parquet", item_id=np.arange(400))
    undisturbed, config = (
        scoring(adapted, planted, tmp_path / name, path, users_per_part=1) for name in ("one", "two")
    )
    score(undisturbed)
    config.dir.mkdir()
    interrupt("score", config, config.scores_dir, 4, signal.SIGKILL)
    assert not config.scores_dir.exists()
    assert 0 < score(config).made < USERS
    assert contents(config.scores_dir) == contents(undisturbed.scores_dir)


@pytest.mark.ray
@pytest.mark.slow
def test_own_candidates_have_the_scores_that_a_list_gives_them(
    adapted: Path, planted: Path, tmp_path: Path
) -> None:
    pool = np.arange(0, 400, 13)
    everybody = scoring(
        adapted, planted, tmp_path / "all", candidates(tmp_path / "list.parquet", item_id=pool)
    )
    score(everybody)
    mean_UN = rows(parts_of(everybody.scores_dir), "mean")
    rng = np.random.default_rng(3)
    count_U = rng.integers(0, 9, USERS) * (rng.random(USERS) < 0.8)
    user_M, place_M = np.repeat(np.arange(USERS), count_U), rng.integers(0, len(pool), count_U.sum())
    path = candidates(tmp_path / "own.parquet", user=user_M, item_id=pool[place_M])
    config = scoring(adapted, planted, tmp_path / "own", path)
    score(config)
    table = parts_of(config.scores_dir)
    assert table["user"].to_pylist() == list(range(USERS))
    assert [len(own) for own in table["item_id"].to_pylist()] == count_U.tolist()
    assert table["item_id"].combine_chunks().flatten().to_pylist() == pool[place_M].tolist()
    np.testing.assert_allclose(
        table["mean"].combine_chunks().flatten().to_numpy(), mean_UN[user_M, place_M], rtol=1e-4, atol=1e-4
    )


@pytest.mark.ray
@pytest.mark.slow
def test_users_that_were_changed_are_not_scored(adapted: Path, planted: Path, tmp_path: Path) -> None:
    import shutil

    config = scoring(adapted, planted, tmp_path, candidates(tmp_path / "list.parquet", item_id=LIST))
    users = tmp_path / "users"
    shutil.copytree(adapted / "users", users)
    config = config.model_copy(update={"users": users})
    part = sorted((users / "parts").iterdir())[2]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(CorruptError, match=f"{part.name}: has changed"):
        score(config)
    assert not config.scores_dir.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_bad_input_is_refused_before_work_starts(
    adapted: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("raypref.population.job.in_actors", refuse)
    config = scoring(adapted, planted, tmp_path, candidates(tmp_path / "list.parquet", item_id=[1]))
    population = config.population.model_copy(update={"candidates": None})
    with pytest.raises(ConfigError, match="candidates is not set"):
        score(config.model_copy(update={"population": population}))
    with pytest.raises(InputError, match="no finished table"):
        score(config.model_copy(update={"users": tmp_path / "none"}))
    save_bundle(tmp_path / "bundle", ItemTable.open(planted / "items"), seed=1)
    with pytest.raises(MismatchError, match="inferred by another bundle"):
        score(config.model_copy(update={"bundle": tmp_path / "bundle"}))
    with pytest.raises(InputError, match=r"1 candidates are not in .*, first in row 1"):
        score(scoring(adapted, planted, tmp_path, candidates(tmp_path / "new.parquet", item_id=[0, 400])))


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"item_id": [0, -1]}, "1 candidates are not in .*, first in row 1"),
        ({"item_id": [0, 400]}, "first in row 1"),
        ({"item_id": [0.5]}, "whole numbers"),
        ({"item_id": pa.array([0, None])}, "none missing"),
        ({"item_id": pa.array([], pa.int64())}, "holds no candidates"),
        ({"text": ["a"]}, "need a column `item_id`"),
        ({"prompt": ["a"], "response": ["b"]}, "first in row 0"),
        ({"user": [0]}, "need a column `item_id` beside `user`"),
        ({"user": [0, 1], "item_id": [0, 400]}, "names items 0 to 400"),
        ({"user": [0, 1], "item_id": pa.array([0, None])}, "or none"),
        (
            {"user": [0, USERS], "item_id": [0, 1]},
            f"users 0 to {USERS}; the tables have users 0 to",
        ),
        ({"user": [-1, 0], "item_id": [0, 1]}, "users -1 to 0"),
        ({"user": pa.array([0, None]), "item_id": [0, 1]}, "missing in rows"),
        ({"user": [1] * 64 + [0], "item_id": [0] * 65}, "must be sorted by user"),
    ],
)
def test_bad_candidates_are_refused(planted: Path, tmp_path: Path, columns: Any, problem: str) -> None:
    path = candidates(tmp_path / "candidates.parquet", **columns)
    with pytest.raises((InputError, CorruptError), match=problem):
        Candidates.open(path, ItemTable.open(planted / "items"), USERS)


def test_candidates_that_are_not_there_or_not_parquet_are_refused(planted: Path, tmp_path: Path) -> None:
    items = ItemTable.open(planted / "items")
    for path in (tmp_path / "none.parquet", tmp_path):
        with pytest.raises(InputError, match="no Parquet file"):
            Candidates.open(path, items, USERS)
    (tmp_path / "text.parquet").write_text("item_id\n1\n")
    with pytest.raises(InputError, match="not readable as Parquet"):
        Candidates.open(tmp_path / "text.parquet", items, USERS)


def test_candidates_may_be_texts_in_several_files(planted: Path, tmp_path: Path) -> None:
    embedder = ItemTable.open(planted / "items").metadata.embedder.model_copy(
        update={"template": "{prompt}: {response}"}
    )
    texts = [("p", "a"), ("p", "b"), ("q", "a")]
    hashes = [content_hash(f"{prompt}: {response}") for prompt, response in texts]
    write_items(tmp_path / "items", embedder, [(hashes, np.eye(3, 16, dtype=np.float16))])
    (tmp_path / "list").mkdir()
    candidates(tmp_path / "list" / "1.parquet", prompt=["q"], response=["a"])
    candidates(tmp_path / "list" / "2.parquet", prompt=["p", "p"], response=["b", "a"])
    found = Candidates.open(tmp_path / "list", ItemTable.open(tmp_path / "items"), USERS)
    assert found.list_N is not None
    assert found.list_N.tolist() == [2, 1, 0]
