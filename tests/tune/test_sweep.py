"""Whole sweeps on Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from raypref.checkpoint import Bundle
from raypref.config_file import load_config
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.evaluate.protocol import evaluate
from raypref.train import trainer
from raypref.train.trackers import PROJECT
from raypref.tune.ledger import Record
from raypref.tune.run import sweep
from raypref.tune.search import Recorder
from tests.tune.conftest import Raw

LR, BASES = "method.recipe.lr", "method.bases"


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """Fills with the process of each trial."""
    found: dict[int, set[int]] = {}
    original = Recorder.on_trial_result

    def watched(self: Recorder, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        found.setdefault(trial.config["number"], set()).add(result["pid"])
        original(self, iteration, trials, trial, result, **info)

    monkeypatch.setattr(Recorder, "on_trial_result", watched)
    return found


def ledger(home: Path) -> Path:
    (found,) = home.glob("*/trials.jsonl")
    return found


def records(home: Path) -> list[Record]:
    return [Record.model_validate_json(line) for line in ledger(home).read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
class TestPacked:
    def test_a_sweep_finds_the_best_and_outlives_a_trial_that_diverges(
        self, ray_cluster: None, described: Raw, processes: dict[int, set[int]], capfd: Any
    ) -> None:
        space = {LR: [0.01, 0.1, 1e30], BASES: [2, 4]}
        raw = described(space, sampler="grid", rungs=0, max_concurrent_trials=2)
        home, best = sweep(raw, "test")
        status = {record.number: record.status for record in records(home)}
        assert [status[number] for number in range(6)] == ["finished"] * 4 + ["diverged"] * 2
        assert best == max(records(home), key=lambda one: one.looks[-1].accuracy if one.looks else 0.0)
        assert len(set.union(*processes.values())) <= 2

        shown = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
        assert sorted(line["trial"] for line in shown) == list(range(6))
        boards = sorted(path.name for path in ledger(home).with_name("tensorboard").iterdir())
        assert boards == [f"trial-{number:04d}" for number in range(4)]

        # What the best trial says is what training and evaluating its run say.
        config = load_config(home / "best.yaml", [])
        trainer.run(config)
        items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
        model = Bundle.load(config.bundle_dir).model
        cell = evaluate(model, items, tables, config.evaluate).cell("unseen", "cold", 4)
        assert cell is not None
        assert cell.accuracy_per_user.mean == best.looks[-1].accuracy

    def test_trials_that_are_over_are_not_run_again(
        self, ray_cluster: None, described: Raw, processes: dict[int, set[int]]
    ) -> None:
        raw = described({LR: {"low": 0.001, "high": 0.1, "log": True}}, trials=3)
        home, _ = sweep(raw, "test")
        before = records(home)
        sweep(raw, "test")
        assert records(home) == before
        processes.clear()
        raw["sweep"]["trials"] = 5
        sweep(raw, "test")
        assert records(home)[:3] == before
        assert sorted(processes) == [3, 4]

    def test_the_worse_are_stopped_before_they_cost(self, ray_cluster: None, described: Raw) -> None:
        raw = described({LR: [0.05, 1e-6, 1e-7, 1e-8]}, sampler="grid", rungs=2, max_concurrent_trials=1)
        home, best = sweep(raw, "test")
        found = {record.number: record for record in records(home)}
        assert best.number == 0
        assert [look.rung for look in found[0].looks] == [0, 1, 2]
        stopped = [record for record in found.values() if record.status == "stopped"]
        assert len(stopped) == 3
        assert all(record.looks[-1].rung < 2 for record in stopped)

    def test_early_stopping_remembers_the_trials_of_a_run_before(
        self, ray_cluster: None, described: Raw
    ) -> None:
        raw = described({LR: [0.05, 1e-6]}, sampler="grid", rungs=1, max_concurrent_trials=1)
        home, _ = sweep(raw, "test")
        path = ledger(home)
        first, second = path.read_text().splitlines()
        assert '"stopped"' in second
        path.write_text(first + "\n")
        sweep(raw, "test")
        assert [record.status for record in records(home)] == ["finished", "stopped"]

    def test_optuna(self, ray_cluster: None, described: Raw) -> None:
        raw = described({LR: {"low": 1e-4, "high": 0.1, "log": True}}, sampler="optuna", trials=3, rungs=0)
        home, _ = sweep(raw, "test")
        assert [record.status for record in records(home)] == ["finished"] * 3

    def test_a_lost_worker_is_replaced_and_its_trial_begins_again(
        self, ray_cluster: None, described: Raw, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed: list[int] = []
        original = Recorder.on_trial_result

        def killing(
            self: Recorder, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
        ) -> None:
            original(self, iteration, trials, trial, result, **info)
            if not killed:
                killed.append(result["pid"])
                os.kill(result["pid"], signal.SIGKILL)

        monkeypatch.setattr(Recorder, "on_trial_result", killing)
        raw = described({LR: [0.01, 0.02]}, sampler="grid", rungs=1, reduction=2, max_concurrent_trials=1)
        home, _ = sweep(raw, "test")
        assert killed
        found = {record.number: record for record in records(home)}
        assert found.keys() == {0, 1}
        assert found[0].status == "finished"
        assert [look.rung for look in found[0].looks] == [0, 1]

    def test_a_worker_that_is_lost_too_often_fails_its_trial_alone(
        self, ray_cluster: None, described: Raw, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Recorder.on_trial_result

        def killing(
            self: Recorder, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
        ) -> None:
            original(self, iteration, trials, trial, result, **info)
            if trial.config["number"] == 0:
                os.kill(result["pid"], signal.SIGKILL)

        monkeypatch.setattr(Recorder, "on_trial_result", killing)
        raw = described({LR: [0.01, 0.02]}, sampler="grid", rungs=1, max_concurrent_trials=1)
        raw["train"]["max_failures"] = 0
        home, best = sweep(raw, "test")
        found = {record.number: record for record in records(home)}
        assert best.number == 1
        assert found[0].status == "failed"
        assert found[0].message is not None
        assert "its worker was lost" in found[0].message


@pytest.mark.ray
@pytest.mark.slow
def test_trials_are_runs_of_the_trackers(
    ray_cluster: None, described: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    home, best = sweep(described({LR: [0.01, 0.1]}, sampler="grid", trackers=["mlflow", "wandb"]), "test")
    client = MlflowClient((home.parent / "mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name(PROJECT)
    assert experiment is not None
    runs = {float(run.data.params[LR]): run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {0.01, 0.1}
    assert best.last is not None
    assert runs[best.values[LR]].data.metrics["unseen/accuracy"] == best.last.accuracy
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    offline = sorted(path.name for path in (home.parent / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    assert all(name.endswith(f"trial-{number:04d}") for number, name in enumerate(offline))


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped(described: Raw, tmp_path: Path) -> None:
    raw = described({LR: {"low": 0.001, "high": 0.1, "log": True}}, trials=6, max_concurrent_trials=1)
    raw["method"]["recipe"]["steps"] = 200
    (tmp_path / "sweep.yaml").write_text(json.dumps(raw))
    home = Path(raw["dir"]) / "sweep"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    driver = subprocess.Popen(
        [sys.executable, "-m", "raypref", "sweep", "-c", str(tmp_path / "sweep.yaml")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    family = psutil.Process(driver.pid)
    try:
        end = time.monotonic() + 180
        while time.monotonic() < end and not any(
            len(path.read_text().splitlines()) >= 2 for path in home.glob("*/trials.jsonl")
        ):
            time.sleep(0.02)
    finally:
        for process in [*family.children(recursive=True), family]:
            process.kill()
        driver.wait()
    before = records(home)
    assert 2 <= len(before) < 6
    assert not (home / "best.yaml").exists()
    done = subprocess.run(
        [sys.executable, "-m", "raypref", "sweep", "-c", str(tmp_path / "sweep.yaml")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = records(home)
    assert after[: len(before)] == before
    assert sorted(record.number for record in after) == list(range(6))
    assert (home / "best.yaml").exists()
    assert f"raypref train -c {home / 'best.yaml'}" in done.stdout


def training_workers() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        # One that has just ended has no command line any more.
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_of_several_workers_is_a_training_of_its_own(ray_cluster: None, described: Raw) -> None:
    method = {"type": "lore", "recipe": {"steps": 1500}}
    raw = described({LR: [0.02, 1e-8]}, method, sampler="grid", rungs=1, max_concurrent_trials=1)
    raw["train"] = {"workers": 2, "cpus_per_worker": 0.5, "validate_every": 500, "patience": 0}
    home, best = sweep(raw, "test")
    found = {record.number: record for record in records(home)}
    assert {number: record.status for number, record in found.items()} == {0: "finished", 1: "stopped"}
    assert [look.rung for look in found[1].looks] == [0]
    assert found[1].looks[0].steps < 1500
    end = time.monotonic() + 30
    while training_workers() and time.monotonic() < end:
        time.sleep(0.1)
    assert not training_workers()
    # What the stopped one had reserved is free again.
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < end:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
    # Checkpoints of trials that are over are not kept.
    assert not list(ledger(home).parent.glob("trial-*"))

    config = load_config(home / "best.yaml", [])
    trainer.run(config)
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    cell = evaluate(Bundle.load(config.bundle_dir).model, items, tables, config.evaluate).cell(
        "unseen", "cold", 4
    )
    assert cell is not None
    assert cell.accuracy_per_user.mean == best.looks[-1].accuracy
