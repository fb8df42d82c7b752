from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons as TableComparisons
from raypref.data.tables import Tables
from raypref.errors import ConfigError, InputError
from raypref.population.adapt import adapt
from raypref.population.store import StoreTarget, absolute
from raypref.serve.calls import Comparisons, Items, Learn, Learned
from raypref.serve.judge import Judge
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key, Record, Store
from raypref.serve.stores.memory import MemoryStore
from raypref.serve.users import Users
from tests.population.world import SLOW, USERS, configured, interrupt, parts_of, rows, save_bundle, user_ids

TENANT = "acme"


@pytest.fixture
def config(planted: Path, tmp_path: Path) -> RunConfig:
    save_bundle(tmp_path / "bundle", ItemTable.open(planted / "items"))
    return configured(tmp_path, planted, store=f"sqlite:///{tmp_path}/users.db", tenant=TENANT)


def prefix(config: RunConfig) -> str:
    return Tables.open(config.tables_dir).metadata.fingerprint[:12]


def served(config: RunConfig, judge: Judge) -> MemoryStore:
    """The store of a service that everybody told their comparisons, one at a time and in another order."""
    store = MemoryStore()
    users = Users(store, 1000)
    tables = Tables.open(config.tables_dir)
    learn = tables.comparisons(None, ["train"])
    for name, place in zip(user_ids(config.tables_dir.parent), range(len(learn.user_U)), strict=True):
        for at in reversed(range(learn.offsets[place], learn.offsets[place + 1])):
            sides = [
                Items(np.zeros((0, 0), np.float16), np.array([item]))
                for item in (learn.chosen_M[at], learn.rejected_M[at])
            ]
            event = f"{prefix(config)}-{learn.pair_M[at]}"
            told = Comparisons(*sides, (event,), (0.0,), (float(learn.weight_M[at]),))
            (answer,) = users.learn(judge, [Learn(TENANT, name, told)])
            assert isinstance(answer, Learned)
    return store


def records(store: Store, names: list[str]) -> list[Record]:
    return store.records([Key(TENANT, name) for name in names])


@pytest.mark.ray
@pytest.mark.slow
def test_the_store_is_that_of_a_service_that_was_told_the_same(
    ray_cluster: None, config: RunConfig, planted: Path
) -> None:
    assert adapt(config).made == USERS
    judge = Judge.load(config.bundle_dir, ItemTable.open(config.items_dir))
    expected = served(config, judge)
    store = open_store(config.population.store or "")
    names = user_ids(planted)
    assert records(store, names) == records(expected, names)
    keys = [Key(TENANT, name) for name in names]
    assert store.read(keys) == expected.read(keys)
    assert {state.basis for state in store.read(keys)} == {judge.fingerprint}
    vectors_UZ = np.stack([np.frombuffer(state.vector, "<f4") for state in store.read(keys)])
    np.testing.assert_allclose(rows(parts_of(config.users_dir), "vector"), vectors_UZ, rtol=1e-3, atol=1e-3)
    before = store.read(keys), records(store, names)
    shutil.rmtree(config.users_dir)
    assert adapt(config).made == USERS
    assert (store.read(keys), records(store, names)) == before
    assert store.keys(limit=USERS + 1) == sorted(keys)
    store.close()


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_killed_while_it_fills_a_store_fills_it_once(
    ray_cluster: None, planted: Path, tmp_path: Path
) -> None:
    save_bundle(tmp_path / "bundle", ItemTable.open(planted / "items"), SLOW)
    filled = {}
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        url = f"sqlite:///{folder}/users.db"
        job = configured(folder, planted, store=url, tenant=TENANT, users_per_part=5)
        job = job.model_copy(update={"bundle": tmp_path / "bundle"})
        if name == "killed":
            interrupt("adapt", job, job.users_dir, 4, signal.SIGKILL)
            assert 0 < adapt(job).made < USERS
        else:
            assert adapt(job).made == USERS
        store = open_store(url)
        names = user_ids(planted)
        keys = [Key(TENANT, user) for user in names]
        filled[name] = store.keys(limit=USERS + 1), store.read(keys), records(store, names)
        store.close()
    assert filled["killed"] == filled["undisturbed"]


def comparisons(counts: list[int]) -> TableComparisons:
    total = sum(counts)
    rng = np.random.default_rng(0)
    return TableComparisons(
        np.arange(len(counts)),
        np.full(len(counts), -1),
        np.append(0, np.cumsum(counts)),
        np.arange(total),
        rng.integers(0, 400, total),
        rng.integers(0, 400, total),
        np.full(total, 0.5, np.float32),
        np.where(np.arange(total) % 2, np.nan, 1e9 + np.arange(total)),
    )


def test_many_comparisons_are_many_commits_and_who_made_none_stays_unknown(config: RunConfig) -> None:
    url = config.population.store or ""
    writer = StoreTarget(url, TENANT, "x").open(config.bundle_dir, config.items_dir)
    given = comparisons([0, 3000, 2000, 5, 0])
    names = pa.chunked_array([[f"user-{number}" for number in range(5)]])
    for _ in range(2):
        writer.add(names, given)
    store = open_store(url)
    assert store.keys() == [Key(TENANT, f"user-{number}") for number in (1, 2, 3)]
    (record,) = records(store, ["user-3"])
    assert sorted((event.event_id, event.time_s, event.weight) for event in record.events) == sorted(
        (f"x-{pair}", 0.0 if pair % 2 else 1e9 + pair, 0.5) for pair in range(5000, 5005)
    )
    store.close()


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("raypref.population.job.in_actors", refuse)
    monkeypatch.setattr("raypref.population.adapt.connected", refuse)


def changed(config: RunConfig, **population: str) -> RunConfig:
    return config.model_copy(update={"population": config.population.model_copy(update=population)})


@pytest.mark.usefixtures("no_cluster")
def test_a_store_that_cannot_be_filled_is_refused_before_work_starts(
    config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="ends with the job"):
        adapt(changed(config, store="memory:"))
    with pytest.raises(ConfigError, match="names no store"):
        adapt(changed(config, store="mysql://x"))
    with pytest.raises(ConfigError, match="is no tenant"):
        adapt(changed(config, tenant="a/b"))
    items = ItemTable.open(config.items_dir)
    store = open_store(config.population.store or "")
    other = items.metadata.embedder.model_copy(update={"model": "another"})
    store.setting("embedder", other.model_dump_json())
    store.close()
    with pytest.raises(ConfigError, match=r"embedded by .*another"):
        adapt(config)


@pytest.mark.usefixtures("no_cluster")
def test_users_no_service_can_be_asked_for_are_refused(config: RunConfig, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    shutil.copytree(config.tables_dir, tables)
    users = pq.read_table(tables / "users.parquet")
    names = users["user_id"].to_pylist()
    names[41] = "no such/id"
    column = users.schema.get_field_index("user_id")
    users = users.set_column(column, users.schema.field(column), pa.array(names))
    pq.write_table(users, tables / "users.parquet")
    with pytest.raises(InputError, match="row 41: a service takes no such user id"):
        adapt(config.model_copy(update={"tables": tables}))


def test_a_relative_file_is_the_same_file_for_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("sqlite:///users.db") == absolute(f"sqlite:///{tmp_path}/users.db")
    assert absolute(f"sqlite:///{tmp_path}/users.db") == f"sqlite:///{tmp_path}/users.db"
    assert absolute("postgresql://host/db") == "postgresql://host/db"


def test_another_store_is_another_output(config: RunConfig, tmp_path: Path) -> None:
    embedder = ItemTable.open(config.items_dir).metadata.embedder
    names = {
        StoreTarget(f"sqlite:///{tmp_path}/{file}.db", tenant, "x").claim(embedder)
        for file in ("one", "two")
        for tenant in ("a", "b")
        for _ in range(2)
    }
    assert len(names) == 4
