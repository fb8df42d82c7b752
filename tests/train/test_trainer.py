from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from raypref import files
from raypref.checkpoint import Bundle
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Tables
from raypref.evaluate.protocol import evaluate
from raypref.train.log import METRICS_FILE, read_lines
from raypref.train.session import fit
from raypref.train.trainer import run, run_directory
from tests.conftest import kill_training

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 400


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    write_planted(configured(folder).planted, folder / "items", folder / "tables", buckets=8)
    return folder


def configured(folder: Path, data: Path | None = None, workers: int = 2, steps: int = STEPS) -> RunConfig:
    source = data or folder
    return parse_config(
        {
            "dir": str(folder),
            "items": str(source / "items"),
            "tables": str(source / "tables"),
            "planted": {
                "dim": 32,
                "train_prompts": 400,
                "test_prompts": 100,
                "rewards": 3,
                "seen_users": 200,
                "unseen_users": 100,
                "comparisons": 30,
                "shots": 8,
            },
            "method": {"type": "vrf", "bases": 4, "latent": 8, "hidden": 16, "features": 8}
            | {"recipe": {"steps": steps, "users_per_step": 64}},
            "train": {
                "workers": workers,
                "cpus_per_worker": 1,
                "checkpoint_every": 40,
                "validate_every": 50,
                "log_every": 5,
                "patience": 0,
            },
            "evaluate": {"shots": [0, 8]},
        },
        [],
        "test",
    )


def digest(config: RunConfig) -> str:
    return files.sha256(config.bundle_dir / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(ray_cluster: None, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = configured(tmp_path_factory.mktemp("whole"), planted)
    run(config)
    return config


def test_the_bundle_is_complete(uninterrupted: RunConfig) -> None:
    bundle = Bundle.load(uninterrupted.bundle_dir)
    tables = Tables.open(uninterrupted.tables_dir)
    assert bundle.info.data_fingerprint == tables.metadata.fingerprint
    assert bundle.info.users == bundle.users.num_rows == 200
    assert bundle.info.metrics["valid_accuracy"] > 0.6
    assert sorted(bundle.users["row"].to_pylist()) == list(range(200))


def test_metrics_are_json_lines_and_tensorboard(uninterrupted: RunConfig) -> None:
    directory = run_directory(uninterrupted, Tables.open(uninterrupted.tables_dir))
    lines = read_lines(directory / METRICS_FILE)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(5, STEPS + 1, 5))
    assert [line["step"] for line in lines if line["kind"] == "valid"] == list(range(50, STEPS + 1, 50))
    train = next(line for line in lines if line["kind"] == "train")
    assert {"loss", "vbt", "kl", "grad_norm", "lr", "steps_per_s", "comparisons_per_s"} <= train.keys()
    events = list((directory / "tensorboard").glob("events.*"))
    assert events
    assert any(path.stat().st_size > 1000 for path in events)


def test_the_same_run_again_does_nothing_but_write_the_bundle(uninterrupted: RunConfig) -> None:
    before = digest(uninterrupted)
    lines = len(
        read_lines(run_directory(uninterrupted, Tables.open(uninterrupted.tables_dir)) / METRICS_FILE)
    )
    run(uninterrupted)
    assert digest(uninterrupted) == before
    directory = run_directory(uninterrupted, Tables.open(uninterrupted.tables_dir))
    assert len(read_lines(directory / METRICS_FILE)) == lines


def test_two_workers_and_one_reach_the_same_accuracy(uninterrupted: RunConfig, planted: Path) -> None:
    alone = fit(
        configured(planted, workers=1), ItemTable.open(planted / "items"), Tables.open(planted / "tables")
    )
    items, tables = ItemTable.open(planted / "items"), Tables.open(planted / "tables")
    for cohort, shots in (("seen", None), ("unseen", 8)):
        figures = [
            evaluate(model, items, tables, uninterrupted.evaluate).cell(cohort, "cold", shots)
            for model in (alone.model, Bundle.load(uninterrupted.bundle_dir).model)
        ]
        one, two = (figure.accuracy_per_user for figure in figures if figure is not None)
        # Two intervals of independent runs on the same users: they overlap unless the runs really differ.
        assert one.low <= two.high
        assert two.low <= one.high
        assert abs(one.mean - two.mean) < 0.03


def workers_of(pid: int) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(pid).children(recursive=True)
        if "RayTrainWorker" in process.name() or "RayTrainWorker" in " ".join(process.cmdline())
    ]


def wait_for_step(directory: Path, step: int, seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(line["step"] >= step for line in read_lines(directory / METRICS_FILE)):
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {seconds} s")


@pytest.mark.parametrize("trial", range(2))
def test_killed_at_a_random_step_and_resumed_gives_the_same_weights(
    trial: int, uninterrupted: RunConfig, planted: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path, planted)
    directory = run_directory(config, Tables.open(config.tables_dir))
    step = random.Random(trial).randrange(10, STEPS - 60)
    killed: list[int] = []

    def kill() -> None:
        wait_for_step(directory, step)
        victim = random.Random(trial).choice(workers_of(os.getpid()))
        victim.send_signal(signal.SIGKILL)
        killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    run(config)
    thread.join()
    assert killed
    assert digest(config) == digest(uninterrupted)


def test_a_killed_driver_starts_where_it_stopped(
    uninterrupted: RunConfig, planted: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path, planted)
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    directory = run_directory(config, Tables.open(config.tables_dir))
    kill_training(tmp_path / "run.yaml", lambda: wait_for_step(directory, 100))
    assert not config.bundle_dir.exists()
    resumed_from = [line["step"] for line in read_lines(directory / METRICS_FILE)][-1]
    assert resumed_from < STEPS
    run(config)
    assert digest(config) == digest(uninterrupted)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
