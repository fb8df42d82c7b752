"""The protocol: seen and unseen users, warm and cold items, after 0, 1, 2, 4 … comparisons.

A user's context is training comparisons; what they are judged on is held out. Seen users have all
their training comparisons as context; an unseen user has a prefix of a random order of theirs, drawn
once a seed and averaged over the seeds before users are averaged. Only the four cuts of a method are
used, so its D-wide work is done once an item and once a comparison, however many shots and draws.

Where most is known of users, all of the training comparisons or the most shots, the same comparisons are
judged once more by another user's vector: what accuracy is lost is what vectors say of their users.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raypref import metrics
from raypref.config import EvaluateConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import InputError, MismatchError
from raypref.evaluate.batches import (
    ItemFeatures,
    UserBatch,
    bucket_groups,
    shuffle,
    target_batches,
    user_batches,
)
from raypref.evaluate.collapse import Posteriors, Sample
from raypref.evaluate.result import PER_USER_SCHEMA, Absent, Cell, Evaluation, Setting
from raypref.evaluate.tally import Tally
from raypref.methods.base import RewardModel
from raypref.schema import Cohort
from raypref.types import Reward

COHORTS: tuple[Cohort, ...] = ("seen", "unseen")
SETTINGS: tuple[Setting, ...] = ("warm", "cold")

Present = dict[Cohort, list[Setting]]
"""The settings of each cohort that the tables hold."""


def evaluate(model: RewardModel, items: ItemTable, tables: Tables, config: EvaluateConfig) -> Evaluation:
    """Measure a settled model in every cell that the tables hold.

    Memory does not grow with users beyond a few numbers each and the vectors of a sample of them; items
    keep their features, N·F floats.

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
            for cell, users in _measure(model, features, items, tables, cohort, settings, config):
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
) -> list[tuple[Cell, pa.Table]]:
    shots = (None,) if cohort == "seen" else tuple(dict.fromkeys(config.shots))
    if not settings or not shots:
        return []
    tallies = {(setting, s): Tally(cohort, setting, s) for setting in settings for s in shots}
    most = max(shots, key=lambda s: s or 0)
    sample = Sample(tables, cohort, settings)
    posteriors = Posteriors(sample)
    for batch in user_batches(model, items, tables, cohort, settings, config.users_per_batch):
        users = _infer(model, batch, shots, config.seeds)
        sample.keep(batch.user_B, users[most])
        if (latent := model.latent(*_told(batch, most, config.seeds[0]))) is not None:
            posteriors.add(batch.user_B, latent)
        for setting in settings:
            chosen_BN, rejected_BN, weight_BN = batch.targets[setting]
            if not weight_BN.any():
                continue
            mask_BN = weight_BN > 0
            chosen_BNF, rejected_BNF = features.gather(chosen_BN), features.gather(rejected_BN)
            for s, draws in users.items():
                margins = [model.margin(chosen_BNF, rejected_BNF, user_BZ) for user_BZ in draws]
                logits = [_logit(margin, mask_BN, batch.user_B) for margin in margins]
                spreads = [_spread(margin, mask_BN) for margin in margins]
                tallies[setting, s].add(batch.user_B, batch.count_B, mask_BN, logits, spreads)
    if len(sample) > 1:
        deepest: dict[Setting, Tally] = {setting: tallies[setting, most] for setting in settings}
        _judge_by_others(model, features, tables, cohort, deepest, sample, config.users_per_batch)
    collapse = posteriors.close(config.active_threshold)
    return [tally.close(config, collapse if s == most else None) for (_, s), tally in tallies.items()]


def _judge_by_others(
    model: RewardModel,
    features: ItemFeatures,
    tables: Tables,
    cohort: Cohort,
    tallies: dict[Setting, Tally],
    sample: Sample,
    users: int,
) -> None:
    """Judge each user's comparisons by another user's vector, in the batches of `user_batches`."""
    for buckets in bucket_groups(tables, users):
        for user_B, targets in target_batches(tables, cohort, list(tallies), buckets, users):
            draws = sample.others(user_B)
            for setting, tally in tallies.items():
                chosen_BN, rejected_BN, weight_BN = targets[setting]
                if not weight_BN.any():
                    continue
                sides = features.gather(chosen_BN), features.gather(rejected_BN)
                mask_BN = weight_BN > 0
                logits = [_logit(model.margin(*sides, user_BZ), mask_BN, user_B) for user_BZ in draws]
                tally.add_others(mask_BN, logits)


def _told(batch: UserBatch, shots: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return evidence_BPE and weight_BP of so many comparisons, None for all of them."""
    if shots is None:
        return batch.evidence_BPE, batch.weight_BP
    return _prefix(*shuffle(batch, seed), shots)


def _prefix(evidence_BPE: Tensor, weight_BP: Tensor, shots: int) -> tuple[Tensor, Tensor]:
    """Return the first comparisons; none of them is one that is padded, as an axis may be of length 0."""
    if shots == 0:
        return evidence_BPE[:, :1], torch.zeros_like(weight_BP[:, :1])
    return evidence_BPE[:, :shots], weight_BP[:, :shots]


def _infer(
    model: RewardModel, batch: UserBatch, shots: tuple[int | None, ...], seeds: tuple[int, ...]
) -> dict[int | None, list[Tensor]]:
    """Return the user vectors for each number of shots, one a draw; equal draws are made once."""
    users: dict[int | None, list[Tensor]] = {s: [] for s in shots}
    for seed in seeds:
        evidence_BPE, weight_BP = shuffle(batch, seed)
        for s, draws in users.items():
            if s is None and not draws:
                draws.append(model.infer(batch.evidence_BPE, batch.weight_BP))
            elif s is not None and (s or not draws):
                draws.append(model.infer(*_prefix(evidence_BPE, weight_BP, s)))
    return users


def _logit(margin: Reward, mask_BN: np.ndarray, user_B: np.ndarray) -> np.ndarray:
    """Return logit_M of the comparisons that are not padding."""
    logit_BN = margin.logit_BN().double().cpu().numpy()
    bad_BN = ~np.isfinite(logit_BN) & mask_BN
    if bad_BN.any():
        user = user_B[np.flatnonzero(bad_BN.any(1))[0]]
        raise InputError(
            f"the model's score is not finite in {bad_BN.sum()} of {mask_BN.sum()} comparisons, first for "
            f"user {user}. The bundle is unusable: train it again with a lower method.recipe.lr."
        )
    return logit_BN[mask_BN]


def _spread(margin: Reward, mask_BN: np.ndarray) -> np.ndarray | None:
    """Return the standard deviation of each margin, None where the method has no variance."""
    if margin.var_BN is None:
        return None
    return metrics.finite(margin.var_BN.double().sqrt().cpu().numpy()[mask_BN], "variance")
