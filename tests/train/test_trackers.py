"""Trackers, real ones without a network: MLflow's file store, W&B offline."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from raypref.config import RunConfig
from raypref.data.planting import write_planted
from raypref.errors import ConfigError
from raypref.train import trackers
from raypref.train.log import METRICS_FILE, MetricsLog, read_lines
from raypref.train.trackers import PROJECT, flatten, open_trackers, require_trackers

PARAMETERS = {
    "method": {"type": "vrf", "recipe": {"lr": 0.002}},
    "train": {"workers": [1, 4]},
    "long": "x" * 900,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


def mlflow_runs(home: Path) -> list[Any]:
    from mlflow import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        # Who wrote it has consented in a process of its own.
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient((home / "mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name(PROJECT)
    assert experiment is not None
    return [(run, client) for run in client.search_runs([experiment.experiment_id])]


def test_a_killed_training_goes_on_in_its_own_run_of_mlflow(tmp_path: Path) -> None:
    for steps in ((10, 20), (20, 30)):  # the second was killed after 20 had been logged, and resumed from 10
        [tracker] = open_trackers(["mlflow"], tmp_path, "vrf-1", PARAMETERS)
        for step in steps:
            tracker.log(step, {"train/loss": 1 / step})
    tracker.close()
    [other] = open_trackers(["mlflow"], tmp_path, "vrf-2", PARAMETERS)
    other.log(10, {"train/loss": math.nan})
    found = {run.info.run_name: (run, client) for run, client in mlflow_runs(tmp_path)}
    assert set(found) == {"vrf-1", "vrf-2"}
    run, client = found["vrf-1"]
    assert run.info.status == "FINISHED"
    assert run.data.params["method.recipe.lr"] == "0.002"
    assert run.data.params["train.workers"] == "[1, 4]"
    history = [
        (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")
    ]
    assert history == [(10, 0.1), (20, 0.05), (20, 0.05), (30, 1 / 30)]
    assert found["vrf-2"][0].info.status == "RUNNING"


def test_weights_and_biases_offline(tmp_path: Path) -> None:
    [tracker] = open_trackers(["wandb"], tmp_path, "vrf-1", PARAMETERS)
    tracker.log(10, {"train/loss": 0.1})
    tracker.close()
    [folder] = (tmp_path / "wandb").glob("offline-run-*-vrf-1")
    [record] = folder.glob("*.wandb")
    # W&B's own process writes it, and may be a moment behind.
    end = time.monotonic() + 60
    while b"train/loss" not in record.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)
    assert b"train/loss" in record.read_bytes()


def test_a_tracker_that_fails_while_training_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_trackers(["mlflow"], tmp_path, "vrf-1", {})
    with MetricsLogged(tmp_path / "log", opened) as log:
        log.write("train", 1, {"loss": 1.0})
        monkeypatch.setattr("mlflow.MlflowClient.log_batch", broken)
        log.write("train", 2, {"loss": 0.5})
        log.write("train", 3, {"loss": 0.25})
    assert [line["loss"] for line in read_lines(tmp_path / "log" / METRICS_FILE)] == [1.0, 0.5, 0.25]
    assert [record.message for record in caplog.records if record.name == trackers.LOG.name] == [
        "mlflow failed at step 2 and is left out from now on: the server is away"
    ]


class MetricsLogged(MetricsLog):
    """A log that is closed with its block."""

    def __init__(self, directory: Path, opened: list[trackers.Tracker]) -> None:
        directory.mkdir()
        super().__init__(directory, 0, opened)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def broken(*arguments: object, **options: object) -> None:
    raise OSError("the server is away")


def test_what_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.MlflowClient.search_runs", broken)
    with pytest.raises(ConfigError, match=r"train\.trackers: mlflow does not start: the server is away"):
        open_trackers(["mlflow"], tmp_path, "vrf-1", {})


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    require_trackers(["mlflow", "wandb"], "train.trackers")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"sweep\.trackers: wandb is not installed; pip install 'raypref\[tracking\]'"
    ):
        require_trackers(["wandb"], "sweep.trackers")


def test_parameters_are_named_by_their_path() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


@pytest.mark.ray
def test_training_is_followed_from_its_worker(ray_cluster: None, tmp_path: Path) -> None:
    from raypref.train.trainer import run

    raw = {
        "dir": tmp_path,
        "planted": {"dim": 8, "train_prompts": 20, "test_prompts": 5, "seen_users": 20, "unseen_users": 4}
        | {"comparisons": 6, "shots": 4, "valid": 2},
        "method": {"type": "bt", "recipe": {"steps": 20}},
        "train": {"trackers": ["mlflow"], "log_every": 10, "validate_every": 10},
    }
    config = RunConfig.model_validate(raw)
    write_planted(config.planted, config.items_dir, config.tables_dir)
    run(config)
    run(config)  # finished: nothing is trained, nothing new is tracked
    [(found, client)] = mlflow_runs(tmp_path)
    assert found.info.status == "FINISHED"
    assert json.loads(found.data.params["method.recipe.steps"]) == 20
    steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")]
    assert steps == [10, 20]
    assert found.data.metrics["valid/accuracy"] > 0
