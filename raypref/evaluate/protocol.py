"""The protocol: seen and unseen users, warm and cold items, after 0, 1, 2, 4 … comparisons.

A user's context is training comparisons; what they are judged on is held out. Seen users have all
their training comparisons as context; an unseen user has a prefix of a random order of theirs, drawn
once a seed and averaged over the seeds before users are averaged. Only the four cuts of a method are
used, so its D-wide work is done once an item and once a comparison, however many shots and draws.
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
from raypref.evaluate.batches import ItemFeatures, UserBatch, bucket_groups, shuffle, user_batches
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

    Memory does not grow with users beyond a few numbers each; items keep their features, N·F floats.

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
            for tally in _measure(model, features, items, tables, cohort, settings, config):
                cell, users = tally.close(config)
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
    if items.metadata.embedder.dim != model.dims.embedding:
        raise MismatchError(
            f"the items have D = {items.metadata.embedder.dim}, the model takes {model.dims.embedding}."
        )


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
) -> list[Tally]:
    shots = (None,) if cohort == "seen" else tuple(dict.fromkeys(config.shots))
    tallies = {(setting, s): Tally(cohort, setting, s) for setting in settings for s in shots}
    if not settings:
        return []
    for batch in user_batches(model, items, tables, cohort, settings, config.users_per_batch):
        users = _infer(model, batch, shots, config.seeds)
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
    return list(tallies.values())


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
            elif s == 0 and not draws:
                # One padded comparison: the contract promises nothing for an axis of length 0.
                draws.append(model.infer(evidence_BPE[:, :1], torch.zeros_like(weight_BP[:, :1])))
            elif s:
                draws.append(model.infer(evidence_BPE[:, :s], weight_BP[:, :s]))
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
