"""Users of some buckets judged by a model: all that happens of an evaluation per comparison, tallies aside.

What is here depends on the model and the buckets alone, so groups of buckets may be judged anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypref import metrics
from raypref.config import EvaluateConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import InputError
from raypref.evaluate.batches import ItemFeatures, UserBatch, shuffle, target_batches, user_batches
from raypref.evaluate.collapse import Sample
from raypref.evaluate.result import Setting
from raypref.methods.base import RewardModel
from raypref.schema import Cohort
from raypref.types import Latent, Reward


@dataclass(frozen=True)
class Judged:
    """A batch of users as a model judges their held-out comparisons."""

    user_B: np.ndarray
    count_B: np.ndarray
    """Training comparisons of each user."""
    most: list[Tensor]
    """Vectors from the most comparisons, one a draw of the shots."""
    latent: Latent | None
    mask: dict[Setting, np.ndarray]
    """mask_BN: which places hold a comparison."""
    logits: dict[tuple[Setting, int | None], list[np.ndarray]]
    """logit_M of these places by setting and shots, one a draw of the shots."""
    spreads: dict[tuple[Setting, int | None], list[np.ndarray | None]]
    """The margin's standard deviation likewise."""


@torch.no_grad()
def judge(
    model: RewardModel,
    features: ItemFeatures,
    items: ItemTable,
    tables: Tables,
    cohort: Cohort,
    settings: list[Setting],
    shots: tuple[int | None, ...],
    most: int | None,
    config: EvaluateConfig,
    buckets: range,
) -> Iterator[Judged]:
    """Yield the users of some buckets, judged after each number of shots."""
    for batch in user_batches(model, items, tables, cohort, settings, buckets, config.users_per_batch):
        users = _infer(model, batch, shots, config.seeds)
        latent = model.latent(*_told(batch, most, config.seeds[0]))
        judged = Judged(batch.user_B, batch.count_B, users[most], latent, {}, {}, {})
        for setting in settings:
            chosen_BN, rejected_BN, weight_BN = batch.targets[setting]
            if not weight_BN.any():
                continue
            mask_BN = weight_BN > 0
            judged.mask[setting] = mask_BN
            chosen_BNF, rejected_BNF = features.gather(chosen_BN), features.gather(rejected_BN)
            for s, draws in users.items():
                margins = [model.margin(chosen_BNF, rejected_BNF, user_BZ) for user_BZ in draws]
                judged.logits[setting, s] = [_logit(margin, mask_BN, batch.user_B) for margin in margins]
                judged.spreads[setting, s] = [_spread(margin, mask_BN) for margin in margins]
        yield judged


@torch.no_grad()
def judge_by_others(
    model: RewardModel,
    features: ItemFeatures,
    tables: Tables,
    cohort: Cohort,
    settings: list[Setting],
    sample: Sample,
    users: int,
    buckets: range,
) -> Iterator[tuple[Setting, np.ndarray, list[np.ndarray]]]:
    """Judge each user's comparisons by another user's vector, in the batches of `judge`."""
    for user_B, targets in target_batches(tables, cohort, settings, buckets, users):
        draws = sample.others(user_B)
        for setting in settings:
            chosen_BN, rejected_BN, weight_BN = targets[setting]
            if not weight_BN.any():
                continue
            sides = features.gather(chosen_BN), features.gather(rejected_BN)
            mask_BN = weight_BN > 0
            yield (
                setting,
                mask_BN,
                [_logit(model.margin(*sides, user_BZ), mask_BN, user_B) for user_BZ in draws],
            )


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
