"""Data-parallel training on Ray Train: the only file that says ray.train."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.data import DataIterator
from ray.train.torch import TorchTrainer

from raypref.checkpoint import BundleInfo
from raypref.cluster import connected
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons, Tables
from raypref.errors import ConfigError, InputError, RayprefError
from raypref.train.log import MetricsLog, Speed, progress
from raypref.train.loop import TrainState, start
from raypref.train.session import Session, finish, fresh_model
from raypref.train.state import load_state, save_state

INGEST_ROWS = 65_536
"""Comparisons that Ray Data hands over at a time."""


def run(config: RunConfig) -> BundleInfo:
    """Train the configured method and write its bundle.

    The same configuration over the same tables continues where a killed run stopped, and does nothing but
    write the bundle again if that run had finished.

    Raises:
        InputError: the tables are missing or hold no seen user, or the loss diverged.
        MismatchError: items and comparisons are of different embedders.
        ConfigError: more workers than buckets of users.
    """
    config = config.absolute()
    tables = Tables.open(config.tables_dir)
    items = ItemTable.open(config.items_dir).with_prompts(config.method.needs_prompts)
    tables.require_items(items)
    if tables.metadata.seen_users == 0:
        raise InputError(f"{config.tables_dir}: no seen users to train on; lower prepare.unseen_share.")
    if config.train.workers > tables.metadata.buckets:
        raise ConfigError(
            f"train.workers is {config.train.workers}, but the tables have {tables.metadata.buckets} buckets "
            "of users; prepare them with more buckets."
        )
    directory = run_directory(config, tables)
    directory.mkdir(parents=True, exist_ok=True)
    cpus = 1 + int(np.ceil(config.train.workers * config.train.cpus_per_worker))
    with connected(cpus), progress(directory, config.method.recipe.steps):
        trainer = TorchTrainer(
            work,
            train_loop_config={"config": config.model_dump(mode="json"), "log": str(directory)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.train.workers,
                use_gpu=config.train.use_gpu,
                resources_per_worker={"CPU": config.train.cpus_per_worker},
            ),
            run_config=ray.train.RunConfig(
                name=directory.name,
                storage_path=str(directory.parent),
                failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
            datasets={"train": _read(tables.files())},
            dataset_config=UserShards(tables),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
    if result.checkpoint is None:
        raise InputError(f"{directory}: training ended without a checkpoint.")
    state = start(fresh_model(config, items, tables), config.method.recipe)
    with result.checkpoint.as_directory() as path:
        load_state(state, Path(path))
    bundle = finish(config, items, tables, state)
    bundle.save(config.bundle_dir)
    return bundle.info


def run_directory(config: RunConfig, tables: Tables) -> Path:
    """Return where the checkpoints and metrics of a training stand; its name is what was trained on what."""
    identity = json.dumps(
        [
            config.method.model_dump(mode="json"),
            config.train.model_dump(mode="json"),
            tables.metadata.fingerprint,
        ]
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return config.dir / "train" / f"{config.method.type}-{digest}"


class UserShards(ray.train.DataConfig):
    """Gives each worker the files, and so the buckets of users, that are its own.

    Ray Train's own split makes shards equal by dropping rows; users must stay whole and none may be lost.
    """

    def __init__(self, tables: Tables) -> None:
        """Share out the files of these tables."""
        super().__init__()
        self._tables = tables

    def configure(
        self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, DataIterator]]:
        """Return an iterator over every worker's files."""
        shards = [self._tables.files(self._tables.shard(rank, world_size)) for rank in range(world_size)]
        return [{name: _read(files).iterator() for name in datasets} for files in shards]


def _read(files: Sequence[Path]) -> ray.data.Dataset:
    return ray.data.read_parquet([str(path) for path in files])


def work(raw: dict[str, Any]) -> None:
    """Train on one worker: its users, its own random stream, gradients averaged with the others."""
    config = RunConfig.model_validate(raw["config"])
    options = config.train
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(options.cpus_per_worker)))
    torch.use_deterministic_algorithms(True, warn_only=True)

    items = ItemTable.open(config.items_dir).with_prompts(config.method.needs_prompts)
    tables = Tables.open(config.tables_dir)
    learn, held = _ingest(tables)
    session = Session(config, items, tables, learn, held, ray.train.torch.get_device(), rank, world_size)
    state = session.state
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as path:
            load_state(state, Path(path))

    log = MetricsLog(Path(raw["log"]), state.step) if rank == 0 else None
    speed = Speed(world_size)
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
            _report(state, rank)
    if log:
        log.close()


def _ingest(tables: Tables) -> tuple[Comparisons, Comparisons]:
    """Return the training and the validation comparisons of this worker's seen users, through Ray Data."""
    shard = cast(DataIterator, ray.train.get_dataset_shard("train"))
    parts: dict[str, list[pa.Table]] = {"train": [], "valid": []}
    batches = shard.iter_batches(batch_size=INGEST_ROWS, batch_format="pyarrow")
    for batch in cast(Iterable[pa.Table], batches):
        seen = batch.filter(pa.array(tables.rows[batch["user"].to_numpy()] >= 0))
        for split, kept in parts.items():
            kept.append(seen.filter(pc.field("split") == split))
    learn, held = (Comparisons.from_batches(kept, tables.rows) for kept in parts.values())
    return learn, held


def _report(state: TrainState, rank: int) -> None:
    """Save the state; a barrier that every worker reaches at the same steps."""
    metrics = {"step": state.step, "best_nll": state.best_nll, "best_accuracy": state.best_accuracy}
    with tempfile.TemporaryDirectory() as work_directory:
        checkpoint = None
        if rank == 0:
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
