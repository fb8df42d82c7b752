"""Data-parallel training on Ray Train: the only file that says ray.train."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.torch import TorchTrainer

from raypref.checkpoint import BundleInfo
from raypref.cluster import connected
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import ConfigError, InputError, RayprefError
from raypref.train.log import MetricsLog, Speed, progress
from raypref.train.loop import TrainState
from raypref.train.session import Session, ended, finish
from raypref.train.shards import Shards
from raypref.train.state import load_state, save_state
from raypref.train.trackers import open_trackers, require_trackers

RESIZE_S = 60.0
"""Seconds between looks whether the cluster has room for more workers of an elastic run, or for fewer."""


def run(config: RunConfig) -> BundleInfo:
    """Train the configured method and write its bundle.

    The same configuration over the same tables continues where a killed run stopped, and does nothing but
    write the bundle again if that run had finished. With `train.workers: [fewest, most]` workers come and go
    with the cluster's nodes; the weights are those of a run that had the most all along.

    Raises:
        InputError: the tables are missing or hold no seen user, or the loss diverged.
        MismatchError: items and comparisons are of different embedders.
        ConfigError: more workers than buckets of users, or a tracker is missing or does not start.
    """
    require_trackers(config.train.trackers, "train.trackers")
    config = config.absolute()
    tables = Tables.open(config.tables_dir)
    items = ItemTable.open(config.items_dir).with_prompts(config.method.needs_prompts)
    tables.require_items(items)
    if tables.metadata.seen_users == 0:
        raise InputError(f"{config.tables_dir}: no seen users to train on; lower prepare.unseen_share.")
    shards = config.train.most_workers
    if shards > tables.metadata.buckets:
        raise ConfigError(
            f"train.workers is {shards}, but the tables have {tables.metadata.buckets} buckets "
            "of users; prepare them with more buckets."
        )
    directory = run_directory(config, tables)
    directory.mkdir(parents=True, exist_ok=True)
    cpus = math.ceil(shards * config.train.cpus_per_worker)
    with connected(cpus), progress(directory, config.method.recipe.steps):
        trainer = TorchTrainer(
            work,
            train_loop_config={"config": config.model_dump(mode="json"), "log": str(directory)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.train.workers,
                use_gpu=config.train.use_gpu,
                resources_per_worker={"CPU": config.train.cpus_per_worker},
                elastic_resize_monitor_interval_s=RESIZE_S,
            ),
            run_config=ray.train.RunConfig(
                name=directory.name,
                storage_path=str(directory.parent),
                failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
    if result.checkpoint is None:
        raise InputError(f"{directory}: training ended without a checkpoint.")
    with result.checkpoint.as_directory() as path:
        state = ended(config, items, tables, Path(path))
    bundle = finish(config, items, tables, state)
    bundle.save(config.bundle_dir)
    return bundle.info


def run_directory(config: RunConfig, tables: Tables) -> Path:
    """Return where the checkpoints and metrics of a training stand; its name is what was trained on what."""
    # The fewest workers change nothing of the result.
    training = config.train.model_dump(mode="json", exclude={"mode", "trackers"})
    training["workers"] = config.train.most_workers
    identity = json.dumps([config.method.model_dump(mode="json"), training, tables.metadata.fingerprint])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return config.dir / "train" / f"{config.method.type}-{digest}"


def work(raw: dict[str, Any]) -> None:
    """Train on one worker: the shards that are its own while there are as many workers as now."""
    config = RunConfig.model_validate(raw["config"])
    options = config.train
    context = ray.train.get_context()
    shards = Shards(options.most_workers, context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(max(1, int(options.cpus_per_worker)))
    torch.use_deterministic_algorithms(True, warn_only=True)

    items = ItemTable.open(config.items_dir).with_prompts(config.method.needs_prompts)
    tables = Tables.open(config.tables_dir)
    session = Session(config, items, tables, ray.train.torch.get_device(), shards)
    state = session.state
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as path:
            load_state(state, Path(path))

    log = None
    if shards.rank == 0:
        directory = Path(raw["log"])
        trackers = open_trackers(options.trackers, config.dir, directory.name, raw["config"])
        log = MetricsLog(directory, state.step, trackers)
    speed = Speed(shards.total / len(shards.numbers))
    for metrics in session.steps():
        speed.add(metrics.comparisons)
        last = metrics.step == config.method.recipe.steps or state.stopped
        if metrics.step % options.log_every == 0 or last:
            if log:
                log.train(metrics, speed)
            speed.restart()
        if log and metrics.valid:
            log.write("valid", metrics.step, metrics.valid._asdict())
        if metrics.step % options.checkpoint_every == 0 or last:
            _report(state)
    if log:
        log.close()


def _report(state: TrainState) -> None:
    """Save the state, every worker its part; a barrier that all reach at the same steps."""
    metrics = {"step": state.step, "best_nll": state.best_nll, "best_accuracy": state.best_accuracy}
    with tempfile.TemporaryDirectory() as work_directory:
        checkpoint = None
        if state.shards.rank == 0 or state.model.user_rows:
            save_state(state, Path(work_directory))
            checkpoint = ray.train.Checkpoint.from_directory(work_directory)
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"step-{state.step:09d}")


def _cause(error: BaseException) -> BaseException:
    """Return the raypref error that made workers fail, if one did, else the failure itself."""
    for failure in _failures(error):
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, RayprefError):
                return seen
            seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def _failures(error: BaseException) -> Iterator[BaseException]:
    yield error
    yield from getattr(error, "worker_failures", {}).values()
