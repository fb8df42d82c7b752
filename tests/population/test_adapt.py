from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from raypref import files
from raypref.checkpoint import Bundle
from raypref.cli import main
from raypref.config import RunConfig
from raypref.data.inference import infer_users
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.methods.base import MethodConfig
from raypref.methods.bt import BTConfig
from raypref.population.adapt import Adapter, adapt
from raypref.population.output import OutputMetadata
from raypref.population.plan import plan_users
from raypref.schema import METADATA_FILE, read_metadata
from tests.population.world import (
    LORE,
    SLOW,
    USERS,
    VRF,
    configured,
    contents,
    interrupt,
    parts_of,
    rows,
    save_bundle,
    user_ids,
    wait_for_parts,
)


def run_of(planted: Path, folder: Path, method: MethodConfig = VRF, **population: object) -> RunConfig:
    save_bundle(folder / "bundle", ItemTable.open(planted / "items"), method)
    return configured(folder, planted, **population)


def assert_whole(config: RunConfig, folder: Path) -> None:
    """Every user stands there exactly once, and the manifest knows every byte."""
    table = parts_of(config.users_dir)
    assert table["user"].to_pylist() == list(range(USERS))
    assert table["user_id"].to_pylist() == user_ids(folder)
    metadata = read_metadata(config.users_dir, OutputMetadata)
    assert metadata.users == USERS
    expected = {part.name: part.sha256 for part in metadata.parts}
    assert contents(config.users_dir) == expected | {
        METADATA_FILE: files.sha256(config.users_dir / METADATA_FILE)
    }


@pytest.mark.parametrize("method", [VRF, LORE, BTConfig()], ids=lambda method: method.type)
def test_every_user_is_who_their_comparisons_say(planted: Path, tmp_path: Path, method: MethodConfig) -> None:
    config = run_of(planted, tmp_path, method)
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    for folder in ("parts", "evidence"):
        (tmp_path / folder).mkdir()
    adapter = Adapter(
        config.bundle_dir, config.items_dir, config.tables_dir, tmp_path, ["train", "valid"], True, None
    )
    model = Bundle.load(config.bundle_dir).model
    everything = tables.comparisons(None, ["train", "valid"])
    expected_UZ = infer_users(model, items, everything, 64).numpy()
    for part in plan_users(tables, 100):
        written = adapter(part)
        own = everything.select(np.arange(part.first_user, part.end_user))
        assert [file.name for file in written] == [f"evidence/{part.name}", f"parts/{part.name}"]
        assert [file.rows for file in written] == [len(own), part.users]
        users = pq.read_table(tmp_path / written[1].name)
        np.testing.assert_allclose(
            rows(users, "vector"), expected_UZ[part.first_user : part.end_user], rtol=2e-4, atol=2e-4
        )
        assert users["comparisons"].to_pylist() == own.counts_U.tolist()
        kept = pq.read_table(tmp_path / written[0].name)
        assert kept["pair_id"].to_pylist() == own.pair_M.tolist()
        assert kept["user"].to_pylist() == np.repeat(own.user_U, own.counts_U).tolist()
        with torch.no_grad():
            evidence_ME = model.evidence(
                torch.from_numpy(items.gather(own.chosen_M)), torch.from_numpy(items.gather(own.rejected_M))
            )
        np.testing.assert_allclose(
            rows(kept, "evidence").reshape(evidence_ME.shape), evidence_ME, rtol=1e-4, atol=1e-4
        )


def test_who_made_no_comparison_is_the_population(planted: Path, tmp_path: Path) -> None:
    config = run_of(planted, tmp_path)
    (tmp_path / "parts").mkdir()
    adapter = Adapter(config.bundle_dir, config.items_dir, config.tables_dir, tmp_path, ["warm"], False, None)
    part = plan_users(Tables.open(config.tables_dir), 20)[0]
    (file,) = adapter(part)
    vectors_UZ = rows(pq.read_table(tmp_path / file.name), "vector")
    model = Bundle.load(config.bundle_dir).model
    with torch.no_grad():
        nobody_1Z = model.infer(torch.zeros(1, 1, 8), torch.zeros(1, 1)).numpy()
    np.testing.assert_array_equal(vectors_UZ, np.repeat(nobody_1Z, part.users, 0))


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of a slow method that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYPREF_CACHE", str(planted / "cache"))
        config = run_of(
            planted, tmp_path_factory.mktemp("undisturbed"), SLOW, evidence=True, users_per_part=5
        )
        adapt(config)
    return config


@pytest.mark.ray
@pytest.mark.slow
def test_every_user_exactly_once(undisturbed: RunConfig, planted: Path) -> None:
    assert_whole(undisturbed, planted)
    assert len(parts_of(undisturbed.users_dir, "evidence")) == 100 * 9 + (USERS - 100) * 5
    assert [path.name for path in undisturbed.dir.iterdir() if ".partial" in path.name] == []


@pytest.mark.ray
@pytest.mark.slow
def test_the_same_run_again_does_nothing_and_another_replaces_it(
    undisturbed: RunConfig, planted: Path, tmp_path: Path
) -> None:
    before = contents(undisturbed.users_dir)
    assert adapt(undisturbed).made == 0
    assert contents(undisturbed.users_dir) == before
    config = run_of(planted, tmp_path)
    assert adapt(config).made == USERS
    assert len(read_metadata(config.users_dir, OutputMetadata).parts) > 1
    one = run_of(planted, tmp_path, workers=1, users_per_part=300)
    assert adapt(one).made == USERS
    assert len(read_metadata(config.users_dir, OutputMetadata).parts) == 1
    assert_whole(one, planted)


def actors() -> list[psutil.Process]:
    """Ray Data's workers below this process."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "MapWorker" in " ".join(process.cmdline())
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_changes_nothing(undisturbed: RunConfig, planted: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.bundle_dir, tmp_path / "bundle")
    config = configured(tmp_path, planted, evidence=True, users_per_part=5)
    killed: list[int] = []

    def kill() -> None:
        for count in (3, 9):
            wait_for_parts(config.users_dir, count)
            victim = actors()[-1]
            victim.kill()
            killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    report = adapt(config)
    thread.join()
    assert len(set(killed)) == 2
    assert report.made == USERS
    assert contents(config.users_dir) == contents(undisturbed.users_dir)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_driver_goes_on_where_it_was(
    undisturbed: RunConfig, planted: Path, tmp_path: Path, how: signal.Signals
) -> None:
    shutil.copytree(undisturbed.bundle_dir, tmp_path / "bundle")
    config = configured(tmp_path, planted, evidence=True, users_per_part=5)
    interrupt("adapt", config, config.users_dir, 4, how)
    assert not config.users_dir.exists()
    partial = tmp_path / ".users.partial"
    with pytest.raises(MismatchError, match="delete the folder to give it up"):
        adapt(configured(tmp_path, planted, evidence=True, users_per_part=6))
    (partial / "parts" / ".part-000001.parquet.torn").write_bytes(b"half")
    published = {path.name: path.stat().st_mtime_ns for path in partial.glob("parts/part-*")}
    report = adapt(config)
    assert 0 < report.made < USERS
    assert contents(config.users_dir) == contents(undisturbed.users_dir)
    after = {path.name: path.stat().st_mtime_ns for path in config.users_dir.glob("parts/part-*")}
    assert published.items() <= after.items()
    assert_whole(config, planted)


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_in_a_worker_is_ours_and_keeps_what_is_done(
    ray_cluster: None, planted: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(planted / "tables", data / "tables")
    shutil.copytree(planted / "items", data / "items")
    torn = sorted((data / "tables" / "comparisons").iterdir())[-1]
    whole = torn.read_bytes()
    torn.write_bytes(b"PAR1" + bytes(len(whole) // 2 - 4) + whole[len(whole) // 2 :])
    save_bundle(tmp_path / "bundle", ItemTable.open(planted / "items"))
    config = configured(tmp_path, data)
    with pytest.raises(CorruptError, match=torn.name):
        adapt(config)
    torn.write_bytes(whole)
    assert 0 < adapt(config).made < USERS
    assert_whole(config, planted)


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("raypref.population.job.in_actors", refuse)


@pytest.mark.usefixtures("no_cluster")
def test_bad_input_is_refused_before_work_starts(planted: Path, tmp_path: Path) -> None:
    items = ItemTable.open(planted / "items")
    config = configured(tmp_path, planted)
    with pytest.raises(InputError, match="no bundle here"):
        adapt(config)
    other = items.metadata.embedder.model_copy(update={"model": "another"})
    save_bundle(config.bundle_dir, items, embedder=other)
    with pytest.raises(MismatchError, match="model 'planted' instead of 'another'"):
        adapt(config)
    save_bundle(config.bundle_dir, items, dim=12)
    with pytest.raises(MismatchError, match=r"D = 16, but .* takes 12"):
        adapt(config)
    save_bundle(config.bundle_dir, items)
    with pytest.raises(InputError, match="no finished table here"):
        adapt(configured(tmp_path, planted).model_copy(update={"tables": tmp_path / "none"}))
    with pytest.raises(InputError, match="no finished table here"):
        adapt(configured(tmp_path, planted).model_copy(update={"items": tmp_path / "none"}))
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        adapt(config)
    assert (tmp_path / "users" / "thesis.txt").read_text() == "precious"
    weights = config.bundle_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptError, match="differs from manifest"):
        adapt(config)


@pytest.mark.usefixtures("no_cluster")
def test_the_command_says_what_is_wrong(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", "--set", f"dir={tmp_path}", "--set", f"items={planted / 'items'}"]) == 2
    assert "no bundle here" in capsys.readouterr().err
