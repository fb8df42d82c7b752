"""The protocol: seen and unseen users, warm and cold items, after 0, 1, 2, 4 … comparisons.

A user's context is training comparisons; what they are judged on is held out. Seen users have all
their training comparisons as context; an unseen user has a prefix of a random order of theirs, drawn
once a seed and averaged over the seeds before users are averaged. Only the four cuts of a method are
used, so its D-wide work is done once an item and once a comparison, however many shots and draws.

Where most is known of users, all of the training comparisons or the most shots, the same comparisons are
judged once more by another user's vector: what accuracy is lost is what vectors say of their users.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raypref.config import EvaluateConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import InputError, MismatchError
from raypref.evaluate.batches import ItemFeatures, bucket_groups
from raypref.evaluate.collapse import Posteriors, Sample
from raypref.evaluate.judging import Judged, judge, judge_by_others
from raypref.evaluate.result import PER_USER_SCHEMA, Absent, Cell, Evaluation, Setting
from raypref.evaluate.tally import Tally
from raypref.methods.base import RewardModel
from raypref.schema import Cohort

COHORTS: tuple[Cohort, ...] = ("seen", "unseen")
SETTINGS: tuple[Setting, ...] = ("warm", "cold")

Present = dict[Cohort, list[Setting]]
"""The settings of each cohort that the tables hold."""

Spread = Callable[[Callable[[range], Iterable[Any]], Iterable[range]], Iterable[Iterable[Any]]]
"""Calls a function for each group of buckets, wherever it likes, and yields what it returns in their order,
as `map` does."""


def evaluate(
    model: RewardModel, items: ItemTable, tables: Tables, config: EvaluateConfig, spread: Spread = map
) -> Evaluation:
    """Measure a settled model in every cell that the tables hold.

    Memory does not grow with users beyond a few numbers each and the vectors of a sample of them; items
    keep their features, N·F floats.

    Args:
        model: what is measured.
        items: the items.
        tables: the users and their comparisons.
        config: what is measured of it.
        spread: where groups of users are judged; every way gives the same figures.

    Raises:
        InputError: the tables hold no held-out comparisons, or the model gives a score that is not finite.
        MismatchError: items, tables and model do not belong together.
    """
    require_together(model, items, tables)
    present: Present = {cohort: _settings(tables, cohort) for cohort in COHORTS}
    if not any(present.values()):
        raise InputError("the tables hold no held-out comparisons, warm or cold; prepare them with a share.")
    cells: list[Cell] = []
    per_user: list[pa.Table] = []
    with frozen(model):
        features = ItemFeatures(model, items, _needed(tables, present, len(items), config.users_per_batch))
        for cohort, settings in present.items():
            for cell, users in _measure(model, features, items, tables, cohort, settings, config, spread):
                cells.append(cell)
                per_user.append(users)
    return Evaluation(
        fingerprint=tables.metadata.fingerprint,
        config=config,
        cells=cells,
        absent=[
            Absent(cohort=cohort, setting=setting, reason="the tables hold no such comparisons")
            for cohort in COHORTS
            for setting in SETTINGS
            if setting not in present[cohort]
        ],
        per_user=pa.concat_tables(per_user).cast(PER_USER_SCHEMA).unify_dictionaries().combine_chunks(),
    )


def require_together(model: RewardModel, items: ItemTable, tables: Tables) -> None:
    """Raise MismatchError unless items, comparisons and model have one embedder and one width."""
    tables.require_items(items)
    if items.width != model.dims.embedding:
        raise MismatchError(f"the items have D = {items.width}, the model takes {model.dims.embedding}.")


@contextmanager
def frozen(model: RewardModel) -> Generator[None]:
    """Run a block with the model in evaluation mode and without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _settings(tables: Tables, cohort: Cohort) -> list[Setting]:
    counts = tables.metadata.comparisons
    return [setting for setting in SETTINGS if counts.get(f"{cohort}/{setting}", 0) > 0]


def _needed(tables: Tables, present: Present, items: int, users_per_batch: int) -> np.ndarray:
    needed_N = np.zeros(items, bool)
    for cohort, settings in present.items():
        for buckets in bucket_groups(tables, users_per_batch) if settings else ():
            part = tables.comparisons(cohort, settings, buckets)
            needed_N[part.chosen_M] = True
            needed_N[part.rejected_M] = True
    return needed_N


def _measure(
    model: RewardModel,
    features: ItemFeatures,
    items: ItemTable,
    tables: Tables,
    cohort: Cohort,
    settings: list[Setting],
    config: EvaluateConfig,
    spread: Spread,
) -> list[tuple[Cell, pa.Table]]:
    shots = (None,) if cohort == "seen" else tuple(dict.fromkeys(config.shots))
    if not settings or not shots:
        return []
    tallies = {(setting, s): Tally(cohort, setting, s) for setting in settings for s in shots}
    most = max(shots, key=lambda s: s or 0)
    sample = Sample(tables, cohort, settings)
    posteriors = Posteriors(sample)
    work = partial(judge, model, features, items, tables, cohort, settings, shots, most, config)
    batches: Iterable[Judged] = chain.from_iterable(
        spread(work, bucket_groups(tables, config.users_per_batch))
    )
    for batch in batches:
        sample.keep(batch.user_B, batch.most)
        if batch.latent is not None:
            posteriors.add(batch.user_B, batch.latent)
        for (setting, s), logits in batch.logits.items():
            spreads = batch.spreads[setting, s]
            tallies[setting, s].add(batch.user_B, batch.count_B, batch.mask[setting], logits, spreads)
    if len(sample) > 1:
        work = partial(
            judge_by_others, model, features, tables, cohort, settings, sample, config.users_per_batch
        )
        for setting, mask_BN, logits in chain.from_iterable(
            spread(work, bucket_groups(tables, config.users_per_batch))
        ):
            tallies[setting, most].add_others(mask_BN, logits)
    collapse = posteriors.close(config.active_threshold)
    return [tally.close(config, collapse if s == most else None) for (_, s), tally in tallies.items()]
