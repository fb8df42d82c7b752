from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Tables
from raypref.errors import ConfigError, CorruptError
from raypref.train.loop import TrainState
from raypref.train.session import fresh_model
from raypref.train.shards import Shards
from raypref.train.state import load_state, save_state
from raypref.train.trainer import run_directory
from tests.train.runs import result, rows, session

USERS, BUCKETS, STEPS = 50, 6, 30
PUBLISHED = {"type": "lore", "solver": "adam"}
DIRECT = [
    PUBLISHED,
    {"type": "pal", "solver": "adamw", "prototypes": 3, "width": 4, "adapt_epochs": 1},
    {"type": "pref"},
    {"type": "pref", "solver": "sgd"},
]


def configured(folder: Path, method: dict[str, Any], **train: Any) -> RunConfig:
    recipe = {"steps": STEPS, "users_per_step": 20, "lr": 0.02, "schedule": "cosine"}
    raw = {
        "dir": str(folder),
        "items": str(folder / "items"),
        "tables": str(folder / "tables"),
        "planted": {"dim": 8, "train_prompts": 8, "test_prompts": 4, "responses": 3, "rewards": 2}
        | {"seen_users": USERS, "unseen_users": 6, "comparisons": 7, "shots": 4, "valid": 2},
        "method": {**method, "recipe": recipe},
        "train": {"validate_every": 10, "patience": 0, **train},
    }
    return parse_config(raw, [], "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    write_planted(configured(folder, PUBLISHED).planted, folder / "items", folder / "tables", BUCKETS)
    return folder


def trained(config: RunConfig, shards: Shards, directory: Path, stop_at: int = STEPS) -> TrainState:
    """Train from what stands in `directory`, if anything, and save there what it ends in."""
    run = session(config, shards)
    if directory.exists():
        load_state(run.state, directory)
    for metrics in run.steps():
        if metrics.step == stop_at:
            break
    directory.mkdir(exist_ok=True)
    save_state(run.state, directory)
    return run.state


def work(raw: dict[str, Any], shards: Shards, directory: Path, stop_at: int, meeting: Path) -> None:
    """One of several processes, which leave their state where each can find it: as Ray Train merges it."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=shards.rank, world_size=shards.world_size
    )
    run = session(RunConfig.model_validate(raw), shards)
    if directory.exists():
        load_state(run.state, directory)
    for metrics in run.steps():
        if metrics.step == stop_at:
            break
    part = directory.with_name(f"{directory.name}-{shards.rank}")
    part.mkdir()
    save_state(run.state, part)
    dist.destroy_process_group()


def together(config: RunConfig, total: int, workers: int, directory: Path, stop_at: int = STEPS) -> None:
    """Train with several processes on from what stands in `directory`, and merge what they save there."""
    context = multiprocessing.get_context("forkserver")
    # Imports take longer than the training.
    context.set_forkserver_preload(["torch._dynamo", "raypref.train.session"])
    meeting = directory.with_name("meeting")
    meeting.unlink(missing_ok=True)
    processes = [
        context.Process(
            target=work,
            args=(config.model_dump(mode="json"), Shards(total, rank, workers), directory, stop_at, meeting),
        )
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for old in sorted(directory.rglob("*"), reverse=True):
        old.unlink() if old.is_file() else old.rmdir()
    directory.mkdir(exist_ok=True)
    for rank in range(workers):
        for path in directory.with_name(f"{directory.name}-{rank}").iterdir():
            path.rename(directory / path.name)
        directory.with_name(f"{directory.name}-{rank}").rmdir()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@given(total=st.integers(1, 40), world_size=st.integers(1, 40))
def test_every_shard_has_one_worker_and_every_worker_a_shard(total: int, world_size: int) -> None:
    world_size = min(total, world_size)
    carried = [Shards(total, rank, world_size).numbers for rank in range(world_size)]
    assert all(carried)
    assert [number for numbers in carried for number in numbers] == list(range(total))
    assert max(map(len, carried)) - min(map(len, carried)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("method", [PUBLISHED, {"type": "vrf"}], ids=["rows", "no rows"])
def test_the_weights_do_not_depend_on_how_many_workers_carry_the_shards(
    method: dict[str, Any], folder: Path, tmp_path: Path, one_thread: None
) -> None:
    config = configured(folder, method)
    trained(config, Shards(3), tmp_path / "one")
    expected = result(config, 3, tmp_path / "one")
    together(config, 3, 2, tmp_path / "two")
    assert same(result(config, 3, tmp_path / "two"), expected)
    # Three workers, then two, then one: each goes on from what the others saved.
    together(config, 3, 3, tmp_path / "less", stop_at=7)
    together(config, 3, 2, tmp_path / "less", stop_at=19)
    again = tmp_path / "less"
    run = session(config, Shards(3))
    load_state(run.state, again)
    assert run.state.step == 19
    for _ in run.steps():
        pass
    last = tmp_path / "last"
    last.mkdir()
    save_state(run.state, last)
    assert same(result(config, 3, last), expected)
    # Two workers, and a run of its own: the same number of shards is what makes it the same.
    trained(config, Shards(2), tmp_path / "other")
    assert not same(result(config, 2, tmp_path / "other"), expected)


@pytest.mark.parametrize("method", DIRECT, ids=lambda method: "-".join(map(str, method.values())))
@pytest.mark.parametrize("total", [1, 3])
def test_rows_of_ones_own_users_train_as_a_table_of_all_users_does(
    total: int, method: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(folder, method)
    state = trained(config, Shards(total), tmp_path / "rows")
    tables = Tables.open(config.tables_dir)
    (name,) = state.model.user_rows
    whole = torch.zeros_like(
        fresh_model(config, ItemTable.open(config.items_dir), tables).get_parameter(name)
    )
    for row_U, model in zip(rows(tables, total), state.models, strict=True):
        whole[row_U] = model.get_parameter(name).detach()
    monkeypatch.setattr(type(state.model), "user_rows", ())
    table = trained(config, Shards(total), tmp_path / "table")
    assert table.model.get_parameter(name).shape == (USERS, whole.shape[1])
    parameters = dict(state.model.named_parameters())
    for key, expected in table.model.named_parameters():
        found = whole if key == name else parameters[key]
        if total == 1:
            assert torch.equal(found, expected), key
        else:
            # Where the gradient is clipped, its norm is added up in another order.
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_a_worker_holds_the_rows_of_its_own_users_and_their_moments_alone(
    folder: Path, tmp_path: Path
) -> None:
    config = configured(folder, PUBLISHED)
    held = [len(row_U) for row_U in rows(Tables.open(config.tables_dir), 3)]
    assert sum(held) == USERS
    whole = trained(config, Shards(3), tmp_path / "state")
    run = session(config, Shards(3, rank=1, world_size=3))
    load_state(run.state, tmp_path / "state")
    (table,) = (run.state.model.get_parameter(name) for name in run.state.model.user_rows)
    assert table.shape[0] == held[1]
    assert torch.equal(table, whole.models[1].get_parameter("logits_UK"))
    assert all(moment.numel() in (1, table.numel()) for moment in run.state.optimiser.state[table].values())
    users = [group["params"] for group in run.state.optimiser.param_groups]
    assert sum(
        parameter.shape[0] for group in users for parameter in group if parameter.shape[1:] == (8,)
    ) == (held[1] + run.state.model.dims.embedding)


def test_the_bundle_holds_the_rows_of_all_users_as_they_were_at_their_best(
    folder: Path, tmp_path: Path
) -> None:
    config = configured(folder, PUBLISHED)
    state = trained(config, Shards(3), tmp_path / "state")
    found = result(config, 3, tmp_path / "state")["logits_UK"]
    for row_U, best in zip(rows(Tables.open(config.tables_dir), 3), state.best_rows, strict=True):
        assert torch.equal(found[row_U], best["logits_UK"])
    assert state.best_step > 0


@pytest.mark.parametrize("damage", ["missing", "changed", "other users"])
def test_a_state_without_all_rows_is_refused(damage: str, folder: Path, tmp_path: Path) -> None:
    config, directory = configured(folder, PUBLISHED), tmp_path / "state"
    trained(config, Shards(2), directory)
    shard = directory / "shard-00001"
    if damage == "missing":
        for path in shard.iterdir():
            path.unlink()
        shard.rmdir()
    elif damage == "changed":
        path = shard / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    total = 3 if damage == "other users" else 2
    with pytest.raises(CorruptError, match="shard-0000"):
        load_state(session(config, Shards(total)).state, directory)
    with pytest.raises(CorruptError, match="shard-0000"):
        result(config, total, directory)


def test_the_fewest_workers_are_no_part_of_what_a_run_is(folder: Path) -> None:
    tables = Tables.open(folder / "tables")
    fixed, elastic, other = (
        run_directory(configured(folder, PUBLISHED, workers=workers), tables)
        for workers in (2, [1, 2], [2, 3])
    )
    assert fixed == elastic != other


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"workers": [3, 2]}, "fewest, most"),
        ({"workers": [0, 2]}, "fewest, most"),
        ({"workers": 0}, "at least 1"),
        ({"workers": [1, 2], "cpus_per_worker": 0.5}, "whole number of cpus_per_worker"),
    ],
)
def test_workers_that_cannot_be_are_refused(folder: Path, train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(folder, PUBLISHED, **train)
