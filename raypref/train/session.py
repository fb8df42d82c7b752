"""One worker's training: its users, its model, its stream of steps; and what becomes of the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raypref.checkpoint import BUNDLE_USERS_SCHEMA, Bundle, BundleInfo, build, library_versions
from raypref.config import RunConfig
from raypref.data.episodes import EpisodeSampler
from raypref.data.inference import HeldOut, contexts, infer_users
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons, Tables
from raypref.methods.base import RewardModel
from raypref.train.loop import Looks, StepMetrics, TrainState, start, train
from raypref.train.shards import Shards, cut
from raypref.train.state import load_weights
from raypref.types import Dims, Episodes, Pairs

SCALE_SAMPLE = 16_384
"""Items whose embeddings set a model's centre and scale."""

VALIDATION_USERS = 1024
"""Most users that a validation looks at, over all workers."""

USERS_PER_VALIDATION_BATCH = 128

PRIMING_USERS = 2048
"""Most seen users whose comparisons a model may see before its first step, whatever the workers."""

USERS_PER_PRIMING_BATCH = 32


class Session:
    """What one worker trains: a fresh state that may be loaded, then `steps`."""

    def __init__(
        self,
        config: RunConfig,
        items: ItemTable,
        tables: Tables,
        device: torch.device,
        shards: Shards | None = None,
    ) -> None:
        """Start from the comparisons of this worker's users.

        Args:
            config: the run.
            items: as the method wants them, with prompts or without.
            tables: where the comparisons are; read here and not by tasks of Ray Data, for which an elastic
                run leaves no CPU.
            device: where the model is.
            shards: which of the run's shards these are; None where there is one.

        Raises:
            InputError: a shard has no training comparisons.
        """
        recipe, options = config.method.recipe, config.train
        shards = shards or Shards()
        parts = [tables.shard(shard, shards.total) for shard in shards.numbers]
        splits = [
            (tables.comparisons("seen", ["train"], part), tables.comparisons("seen", ["valid"], part))
            for part in parts
        ]
        models = cut(
            fresh_model(config, items, tables), [torch.from_numpy(learn.row_U) for learn, _ in splits]
        )
        if models[0].user_rows:
            splits = [(_numbered(learn), held) for learn, held in splits]
        self._config = config
        self.state = start([model.to(device) for model in models], recipe, shards)
        self._samplers = [
            EpisodeSampler(learn, items.gather, recipe, options.seed, number, shards.total)
            for number, (learn, _) in zip(shards.numbers, splits, strict=True)
        ]
        self._looks = None
        if tables.metadata.comparisons.get("seen/valid", 0):
            users = -(-VALIDATION_USERS // shards.total)
            episodes = [HeldOut(items, *split, users, USERS_PER_VALIDATION_BATCH) for split in splits]
            self._looks = Looks(episodes, options.validate_every, options.patience)

    def steps(self) -> Iterator[StepMetrics]:
        """Take the steps that are left; the state is consistent after each."""
        options = self._config.train
        streams = [sampler.stream(self.state.step) for sampler in self._samplers]
        yield from train(
            self.state,
            (episodes for step in zip(*streams, strict=True) for episodes in step),
            self._config.method.recipe,
            seed=options.seed,
            bfloat16=options.precision == "bfloat16",
            looks=self._looks,
        )


def _numbered(comparisons: Comparisons) -> Comparisons:
    """Return the same with each user's row in the table of its shard, which is the user's place in it."""
    return replace(comparisons, row_U=np.arange(len(comparisons.row_U)))


def fresh_model(config: RunConfig, items: ItemTable, tables: Tables) -> RewardModel:
    """Return the untrained model that the configuration and its seed name, the same on every worker."""
    dims = Dims(items.width, tables.metadata.seen_users)
    model = build(config.method, dims, config.train.seed)
    model.fit_scale(torch.from_numpy(items.sample(SCALE_SAMPLE, config.train.seed)))
    model.prime(FirstUsers(items, tables, PRIMING_USERS))
    return model


class FirstUsers:
    """Training comparisons of the first seen users as targets; nothing is read before the first iteration."""

    def __init__(self, items: ItemTable, tables: Tables, users: int) -> None:
        """Take the first `users` seen users that have training comparisons, in the tables' order."""
        self._items = items
        self._tables = tables
        self._users = users

    @cached_property
    def _comparisons(self) -> Comparisons:
        parts: list[Comparisons] = []
        for bucket in range(self._tables.metadata.buckets):
            parts.append(self._tables.comparisons("seen", ["train"], [bucket]))
            if sum(len(part.user_U) for part in parts) >= self._users:
                break
        learn = Comparisons.concatenate(parts)
        return learn.select(learn.user_U[: self._users])

    def __iter__(self) -> Iterator[Episodes]:
        learn = self._comparisons
        batches = contexts(self._items, learn, USERS_PER_PRIMING_BATCH)
        for target, user_B in zip(
            batches, torch.from_numpy(learn.row_U).split(USERS_PER_PRIMING_BATCH), strict=True
        ):
            nothing = Pairs(target.chosen_BPD[:, :0], target.rejected_BPD[:, :0], target.mask_BP[:, :0])
            yield Episodes(nothing, target, user_B)


def ended(config: RunConfig, items: ItemTable, tables: Tables, directory: Path) -> TrainState:
    """Return the state of one shard that holds the best weights of a run's training state on disk.

    Raises:
        CorruptError: a file is missing or changed, or belongs to another model.
    """
    blank = build(config.method, Dims(items.width, tables.metadata.seen_users))
    state = start(blank, config.method.recipe)
    shards = config.train.most_workers
    rows = (
        torch.from_numpy(tables.comparisons("seen", ["train"], tables.shard(shard, shards)).row_U)
        for shard in range(shards)
    )
    load_weights(state, directory, rows)
    return state


def settled(state: TrainState, items: ItemTable, learn: Comparisons, users_per_batch: int) -> RewardModel:
    """Return a trained state's model: its best weights, settled on the seen users' training comparisons."""
    state.restore_best()
    model = state.model.eval()
    device = model.center_D.device
    model.settle(pairs.to(device) for pairs in contexts(items, learn, users_per_batch))
    return model


def finish(config: RunConfig, items: ItemTable, tables: Tables, state: TrainState) -> Bundle:
    """Return the bundle of a trained state: its best weights, settled, and the seen users' vectors."""
    learn, batch = tables.comparisons("seen", ["train"]), config.evaluate.users_per_batch
    model = settled(state, items, learn, batch)
    names = tables.users.column("user_id").take(pa.array(learn.user_U))
    users = pa.table(
        {
            "user_id": names,
            "row": learn.row_U.astype(np.int32),
            "comparisons": learn.counts_U.astype(np.int32),
            "vector": pa.array(list(infer_users(model, items, learn, batch).numpy()), pa.list_(pa.float32())),
        },
        schema=BUNDLE_USERS_SCHEMA,
    )
    found = {"valid_nll": state.best_nll, "valid_accuracy": state.best_accuracy} if state.best_step else {}
    info = BundleInfo(
        method=config.method,
        dim=model.dims.embedding,
        users=model.dims.users,
        embedder=tables.metadata.embedder,
        data_fingerprint=tables.metadata.fingerprint,
        steps=state.best_step or state.step,
        metrics=found,
        versions=library_versions(),
    )
    return Bundle(model, info, users)


def fit(config: RunConfig, items: ItemTable, tables: Tables) -> Bundle:
    """Train in this process, without Ray; for experiments that fit many small models."""
    items = items.with_prompts(config.method.needs_prompts)
    session = Session(config, items, tables, torch.device("cpu"))
    for _ in session.steps():
        pass
    return finish(config, items, tables, session.state)
