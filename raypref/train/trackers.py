"""Where a training is followed beside its own files: MLflow and Weights & Biases, one run there a training.

A training that was killed goes on in the same run. What a tracker cannot take is in `metrics.jsonl` all the
same: one that fails while training goes on is left out from then on, with a warning.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from raypref.errors import ConfigError

TrackerName = Literal["mlflow", "wandb"]

PROJECT = "raypref"
"""MLflow's experiment, and the project of Weights & Biases."""

RUN_TAG = "raypref.run"
"""By which MLflow finds a training's run again."""

LONGEST_PARAMETER = 500
"""Characters of a parameter that every store of MLflow takes."""

LOG = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes figures of a training."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step; after a resume a step may come again."""
        ...

    def close(self) -> None:
        """Say that the training has ended."""
        ...


def require_trackers(names: Sequence[str], key: str) -> None:
    """Refuse trackers that are not installed.

    Args:
        names: of trackers.
        key: where the configuration names them, for the message.

    Raises:
        ConfigError: one is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"{key}: {name} is not installed; pip install 'raypref[tracking]'.")


def open_trackers(
    names: Sequence[TrackerName],
    home: Path,
    name: str,
    parameters: Mapping[str, Any],
    key: str = "train.trackers",
) -> list[Tracker]:
    """Return the trackers of a training, each at its run, which is a new one only the first time.

    Args:
        names: of trackers.
        home: the run's folder; what is kept on disk stands below it, unless MLFLOW_TRACKING_URI or WANDB_DIR
            say where.
        name: of the training, the same after a restart.
        parameters: the configuration, nested.
        key: where the configuration names them.

    Raises:
        ConfigError: a tracker cannot be reached, or refuses.
    """
    kinds = {"mlflow": _MLflow, "wandb": _WandB}
    flat = flatten(parameters)
    opened: list[Tracker] = []
    for kind in names:
        try:
            opened.append(_Patient(kind, kinds[kind](home, name, flat)))
        except Exception as error:  # theirs, of many kinds
            raise ConfigError(f"{key}: {kind} does not start: {error}") from error
    return opened


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a.b.c -> value of a nested mapping; lists stay."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


class _Patient:
    """A tracker that is left alone once it has failed."""

    def __init__(self, kind: str, tracker: Tracker) -> None:
        self._kind = kind
        self._tracker: Tracker | None = tracker

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._tracker is not None:
            try:
                self._tracker.log(step, values)
            except Exception as error:  # theirs, of many kinds
                LOG.warning("%s failed at step %d and is left out from now on: %s", self._kind, step, error)
                self._tracker = None

    def close(self) -> None:
        if self._tracker is not None:
            try:
                self._tracker.close()
            except Exception as error:  # theirs, of many kinds
                LOG.warning("%s: the run is not closed: %s", self._kind, error)


class _MLflow:
    """A run of MLflow, found again by a tag."""

    def __init__(self, home: Path, name: str, parameters: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # MLflow asks for consent to its oldest store, which alone needs no database.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (home / "mlruns").absolute().as_uri()
        self._client = MlflowClient(uri)
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([number], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
        else:
            self._run = self._client.create_run(number, tags={RUN_TAG: name}, run_name=name).info.run_id
            given = [Param(key, json.dumps(value)[:LONGEST_PARAMETER]) for key, value in parameters.items()]
            self._client.log_batch(self._run, params=given[:100])
            for first in range(100, len(given), 100):
                self._client.log_batch(self._run, params=given[first : first + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(key, value, now_ms, step) for key, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _WandB:
    """A run of Weights & Biases, whose id is the training's name."""

    def __init__(self, home: Path, name: str, parameters: Mapping[str, Any]) -> None:
        import wandb

        folder = Path(os.environ.get("WANDB_DIR") or home)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            id=name,
            name=name,
            resume="allow",
            dir=str(folder),
            config=dict(parameters),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Steps may come again after a resume; as W&B's own steps they would be dropped.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()
