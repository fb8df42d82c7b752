"""Describe the bases of a bundle: what they reward, in texts and in features of text, and in whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raypref.checkpoint import Bundle, fingerprint_of, name_of
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.describe.axes import Axes, doubts, item_features, principal_axes, rewards, sample_users
from raypref.describe.correlation import QUANTILE, correlate, rank_features
from raypref.describe.drift import measure_drift
from raypref.describe.features import measure
from raypref.describe.result import (
    UNNAMED,
    Basis,
    Contrast,
    Correlation,
    Description,
    Leaning,
    ScoredItem,
)
from raypref.describe.sample import Sample, sample_rows, sample_texts
from raypref.errors import InputError
from raypref.methods.base import RewardModel
from raypref.schema import require_embedder

LEANING_PAIRS = 16
"""Contrasts by which users are counted as for or against a basis."""


def describe(config: RunConfig, directory: Path, top: int = 3, against: Path | None = None) -> Description:
    """Describe a bundle by the items, the texts and the comparisons of a run.

    Samples are named by hashes and fixed seeds: the same bundle and run give the same description.

    Args:
        config: of the run; without `input.path` items have numbers and no texts.
        directory: of the bundle.
        top: items at either end of a basis, and contrasts.
        against: an earlier bundle, from which it may have drifted.

    Raises:
        InputError: a bundle keeps no users, or rewards nothing; the two share no users.
        MismatchError: bundles, items, texts and comparisons do not belong together.
    """
    items = ItemTable.open(config.items_dir)
    bundles: list[Bundle] = []
    for place in (directory,) if against is None else (directory, against):
        bundles.append(Bundle.load(place))
        require_embedder(items.metadata.embedder, bundles[-1].info.embedder, config.items_dir)
        if not bundles[-1].users.num_rows:
            raise InputError(
                f"{place}: keeps no users' vectors, so nothing says in what users differ; name a bundle that "
                "was trained with its users."
            )
    if config.input.path is not None:
        sample = sample_texts(config.input, items)
    else:
        tables = Tables.open(config.tables_dir) if config.tables_dir.exists() else None
        if tables is not None:
            tables.require_items(items)
        sample = sample_rows(items, tables)
    found, axes = _describe(bundles[0], items, sample, top)
    if against is None:
        return found
    name = f"{name_of(against, bundles[1].info)}@{fingerprint_of(against)}"
    drift = measure_drift(name, bundles[1], bundles[0], items, sample, axes, top)
    return found.model_copy(update={"drift": drift})


@torch.no_grad()
def _describe(bundle: Bundle, items: ItemTable, sample: Sample, top: int) -> tuple[Description, Axes]:
    model, user_UZ = bundle.model, sample_users(bundle)
    item_NF = item_features(bundle, items, sample.row_N)
    axes = principal_axes(rewards(model, item_NF, user_UZ), sample.group_N)
    bases = len(axes.share_K)
    features: list[list[Correlation]] = [[] for _ in range(bases)]
    names = [UNNAMED] * bases
    if sample.responses is not None:
        ranks = rank_features(measure(sample.responses), sample.group_N)
        features, names = correlate(axes.score_KN, ranks)
    found: list[Basis] = []
    for basis in range(bases):
        pure_M2 = _contrasts(axes, sample.pair_M2, basis, max(top, LEANING_PAIRS))
        score_N = axes.score_KN[basis]
        order_N = np.argsort(score_N, kind="stable")
        common = axes.common and basis == 0
        found.append(
            Basis(
                kind="common" if common else "axis",
                title=axes.titles[basis],
                name=names[basis],
                share=round(float(axes.share_K[basis]), 4),
                leaning=_leaning(model, item_NF, user_UZ, pure_M2, common),
                features=features[basis],
                top=[_scored(sample, score_N, at) for at in order_N[::-1][:top]],
                bottom=[_scored(sample, score_N, at) for at in order_N[:top]],
                contrasts=[
                    Contrast(
                        prompt=None if sample.prompts is None else sample.prompts[higher],
                        higher=_scored(sample, score_N, higher),
                        lower=_scored(sample, score_N, lower),
                        difference=round(float(score_N[higher] - score_N[lower]), 3),
                    )
                    for higher, lower in pure_M2[:top]
                ],
            )
        )
    description = Description(
        method=bundle.info.method.type,
        users=len(user_UZ),
        items=len(sample.row_N),
        prompts=None if sample.prompts is None else int(sample.group_N.max()) + 1,
        personal=axes.personal,
        rest=round(axes.rest, 4),
        notes=_notes(bundle.info.method.type, axes, sample),
        bases=found,
    )
    return description, axes


def _scored(sample: Sample, score_N: np.ndarray, at: int) -> ScoredItem:
    return ScoredItem(
        item=int(sample.row_N[at]),
        text=None if sample.responses is None else sample.responses[at],
        score=round(float(score_N[at]), 3),
    )


def _contrasts(axes: Axes, pair_M2: np.ndarray, basis: int, most: int) -> np.ndarray:
    """Return pairs (higher, lower) by their difference on a basis less that on the others; no item twice.

    Others weigh as the root of their share, that of the largest as 1: what moves no reward blurs no contrast.
    """
    if not len(pair_M2):
        return pair_M2
    delta_KM = axes.score_KN[:, pair_M2[:, 0]] - axes.score_KN[:, pair_M2[:, 1]]
    weight_K = axes.share_K / axes.share_K.max()
    weight_K[basis] = 0.0
    own_M, other_M = np.abs(delta_KM[basis]), np.sqrt(weight_K @ delta_KM**2)
    taken: set[int] = set()
    pure: list[tuple[int, int]] = []
    for at in np.argsort(other_M - own_M, kind="stable"):
        higher, lower = pair_M2[at].tolist() if delta_KM[basis, at] >= 0 else pair_M2[at, ::-1].tolist()
        if higher in taken or lower in taken:
            continue
        taken |= {higher, lower}
        pure.append((higher, lower))
        if len(pure) == most:
            break
    return np.array(pure, np.int64)


def _leaning(
    model: RewardModel, item_NF: Tensor, user_UZ: Tensor, pure_M2: np.ndarray, common: bool
) -> Leaning | None:
    """Count users by their mean margin over contrasts; its error is at most the mean of theirs."""
    if not len(pure_M2):
        return None
    higher_MF, lower_MF = (item_NF[torch.from_numpy(side.copy())] for side in pure_M2.T)
    doubt_UM = doubts(model, higher_MF, lower_MF, user_UZ)
    if doubt_UM is None:
        return None
    margin_UM = rewards(model, higher_MF, user_UZ).astype(np.float64) - rewards(model, lower_MF, user_UZ)
    lean_U, doubt_U = margin_UM.mean(1), doubt_UM.mean(1)
    lean_U = lean_U if common else lean_U - lean_U.mean()
    positive, negative = (int(np.sum(side * lean_U > QUANTILE * doubt_U)) for side in (1, -1))
    return Leaning(positive=positive, negative=negative, undecided=len(lean_U) - positive - negative)


def _notes(method: str, axes: Axes, sample: Sample) -> list[str]:
    notes: list[str] = []
    if axes.personal:
        notes.append(
            "Axes are the principal axes of how users' rewards differ: a method's own bases may be rotated, "
            "flipped and scaled without changing any reward. Axes of similar share may be mixtures."
        )
    else:
        notes.append(
            f"{method} has no bases: every user here has the same reward. What is described is that reward."
        )
    if sample.responses is None:
        notes.append("The run names no input, so items have no texts and bases no names.")
    else:
        notes.append("Features of text know English only. A name says what goes along with a basis, not why.")
    return notes
