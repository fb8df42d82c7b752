"""One trial: train a setting, and say at its rungs and at its end what unseen users think of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch

from raypref import metrics
from raypref.config import RunConfig, SweepConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons, Tables
from raypref.evaluate.batches import ItemFeatures, bucket_groups
from raypref.evaluate.judging import judge
from raypref.evaluate.protocol import frozen
from raypref.methods.base import RewardModel
from raypref.schema import Cohort, Split
from raypref.train.loop import TrainState
from raypref.train.session import Session, settled
from raypref.tune.ledger import Look


class KeptTables(Tables):
    """Tables whose comparisons are read once a process, however many trials ask for them."""

    @cached_property
    def _kept(self) -> dict[object, Comparisons]:
        return {}

    def comparisons(
        self, cohort: Cohort | None, splits: Sequence[Split], buckets: Iterable[int] | None = None
    ) -> Comparisons:
        """Return what `Tables.comparisons` returns; it is shared, not to be changed."""
        wanted = tuple(range(self.metadata.buckets) if buckets is None else buckets)
        key = (cohort, tuple(splits), wanted)
        if key not in self._kept:
            self._kept[key] = super().comparisons(cohort, splits, wanted)
        return self._kept[key]


@lru_cache(maxsize=1)
def opened(items: Path, tables: Path) -> tuple[ItemTable, KeptTables]:
    """Return what all trials of a process share: the items that the node maps once, and the comparisons."""
    found = Tables.open(tables)
    return ItemTable.open(items), KeptTables(found.directory, found.metadata)


def rungs(sweep: SweepConfig, steps: int) -> list[int]:
    """Return the steps after which a trial is looked at before its end, each `reduction` times the last.

    None is at the trial's end, so that one of few steps has fewer.
    """
    first = max(1, steps // sweep.reduction**sweep.rungs)
    found = [first * sweep.reduction**rung for rung in range(sweep.rungs)]
    return [step for step in found if step < steps]


def looks(config: RunConfig, sweep: SweepConfig) -> Iterator[Look]:
    """Train a setting in this process and yield the looks at it, the last after its end.

    The last is what `raypref eval` says of what `raypref train` would have written: looking changes nothing.

    Raises:
        DivergedError: training left the finite numbers.
        InputError: a score is not finite.
    """
    items, tables = opened(config.items_dir, config.tables_dir)
    items = items.with_prompts(config.method.needs_prompts)
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    session = Session(config, items, tables, device)
    places = {step: rung for rung, step in enumerate(rungs(sweep, config.method.recipe.steps))}
    for done in session.steps():
        if done.step in places and not session.state.stopped:
            yield look(places[done.step], session.state, config, sweep, items, tables)
    yield look(sweep.rungs, session.state, config, sweep, items, tables)


def look(
    rung: int, state: TrainState, config: RunConfig, sweep: SweepConfig, items: ItemTable, tables: Tables
) -> Look:
    """Return what unseen users say of a training that ended here; the training can go on.

    Args:
        rung: place among the trial's looks.
        state: of one shard; stays as it is.
        config: the trial.
        sweep: how the trial is judged.
        items: as the method wants them, with prompts or without.
        tables: where the comparisons are.
    """
    ended = replace(state, models=copy.deepcopy(state.models))
    model = settled(ended, items, tables.comparisons("seen", ["train"]), config.evaluate.users_per_batch)
    accuracy, nll = _unseen(model, config, sweep, items, tables)
    return Look(rung=rung, steps=state.step, accuracy=accuracy, nll=nll)


def _unseen(
    model: RewardModel, config: RunConfig, sweep: SweepConfig, items: ItemTable, tables: Tables
) -> tuple[float, float]:
    """Return accuracy and NLL of the sweep's cell as `evaluate` does, without the rest of its work."""
    judged = tables.comparisons("unseen", [sweep.setting])
    needed_N = np.zeros(len(items), bool)
    needed_N[judged.chosen_M] = needed_N[judged.rejected_M] = True
    key = (sweep.setting, sweep.shots)
    users: list[np.ndarray] = []
    figures: list[np.ndarray] = []
    options = config.evaluate
    with frozen(model):
        features = ItemFeatures(model, items, needed_N)
        for buckets in bucket_groups(tables, options.users_per_batch):
            for batch in judge(
                model,
                features,
                items,
                tables,
                "unseen",
                [sweep.setting],
                key[1:],
                sweep.shots,
                options,
                buckets,
            ):
                place_M = np.repeat(batch.user_B, batch.mask[sweep.setting].sum(1))
                draws = [
                    [metrics.mean_per_user(of(logit_M), place_M)[1] for of in (metrics.hits, metrics.nll)]
                    for logit_M in batch.logits[key]
                ]
                users.append(batch.user_B)
                figures.append(np.mean(draws, 0))
    # Added up as `evaluate` does, to the last digit.
    order_U = np.argsort(np.concatenate(users), kind="stable")
    accuracy_U, nll_U = np.concatenate(figures, 1)
    return float(accuracy_U[order_U].mean()), float(nll_U[order_U].mean())
