"""Rank correlations of bases with features of text, what of them is significant, and the names it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raypref.describe.features import FEATURES
from raypref.describe.result import UNNAMED, Correlation

FALSE_DISCOVERIES = 0.05
QUANTILE = 1.959964
LEAST_PROMPTS = 20
"""Prompts that must be independent and have texts that differ in a feature; of fewer, errors are unknown."""
LEAST_RHO = 0.2
"""A weaker correlation names nothing, however many texts show it."""


@dataclass(frozen=True)
class Ranks:
    """Standardised ranks of the features of N texts, of those features that vary."""

    feature_A: np.ndarray
    """Indices in `FEATURES`."""
    rank_NA: np.ndarray
    cluster_N: np.ndarray
    """Which texts are not independent of each other."""


def center(value_XN: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Return values less the mean of their group, in float64."""
    count_G = np.bincount(group_N)
    out = np.empty(value_XN.shape, np.float64)
    for row, value_N in enumerate(value_XN):
        value_N = value_N.astype(np.float64)
        out[row] = value_N - (np.bincount(group_N, value_N) / count_G)[group_N]
    return out


def rank_features(value_NA: np.ndarray, group_N: np.ndarray) -> Ranks:
    """Rank texts by their features, less the mean of their prompt.

    Args:
        value_NA: all features of all texts.
        group_N: number of each text's prompt, dense from 0.
    """
    prompts = int(group_N.max()) + 1
    cluster_N = group_N if prompts >= LEAST_PROMPTS else np.arange(len(group_N))
    kept: list[int] = []
    for feature, value_N in enumerate(value_NA.T):
        values, count = np.unique(value_N, return_counts=True)
        unusual_N = value_N != values[count.argmax()]
        if len(np.unique(cluster_N[unusual_N])) >= LEAST_PROMPTS:
            kept.append(feature)
    centered_AN = center(value_NA.T[kept], group_N)
    # Equal values less equal means may differ in the last bit.
    rank_AN = [standardised_ranks(np.round(value_N, 9)) for value_N in centered_AN]
    feature_A = np.array(
        [feature for feature, rank_N in zip(kept, rank_AN, strict=True) if rank_N.any()], int
    )
    rank_AN = [rank_N for rank_N in rank_AN if rank_N.any()]
    rank_NA = np.stack(rank_AN, 1) if rank_AN else np.zeros((len(group_N), 0))
    return Ranks(feature_A, rank_NA, cluster_N)


def standardised_ranks(value_N: np.ndarray) -> np.ndarray:
    """Return ranks of mean 0 and variance 1, equal values sharing theirs; all 0 where all are equal."""
    _, inverse_N, count = np.unique(value_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(count) - 0.5 * (count + 1))[inverse_N]
    rank_N = rank_N - rank_N.mean()
    scale = math.sqrt(float(np.mean(rank_N**2)))
    return rank_N / scale if scale > 0 else np.zeros_like(rank_N)


def correlate(score_KN: np.ndarray, ranks: Ranks) -> tuple[list[list[Correlation]], list[str]]:
    """Return each basis' correlations, strongest first, and its name.

    Errors are those of sums over prompts, on Fisher's scale, with Student's t of as many degrees as prompts.
    """
    found = [_one(standardised_ranks(score_N), ranks) for score_N in score_KN]
    significant_KA = discoveries(np.array([p_A for _, _, p_A in found]))
    correlations: list[list[Correlation]] = []
    names: list[str] = []
    for (rho_A, error_A, _), significant_A in zip(found, significant_KA, strict=True):
        low_A, high_A = np.tanh(np.arctanh(rho_A) + np.array([[-1.0], [1.0]]) * error_A)
        order = np.argsort(-np.abs(rho_A), kind="stable")
        correlations.append(
            [
                Correlation(
                    name=FEATURES[ranks.feature_A[at]].name,
                    rho=round(float(rho_A[at]), 4),
                    low=round(float(low_A[at]), 4),
                    high=round(float(high_A[at]), 4),
                    significant=bool(significant_A[at]),
                )
                for at in order
            ]
        )
        names.append(_name(rho_A, significant_A, ranks))
    return correlations, names


def _one(rank_N: np.ndarray, ranks: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rho, half the interval on Fisher's scale, and the p-value, of every feature."""
    product_NA = rank_N[:, None] * ranks.rank_NA
    rho_A = product_NA.mean(0).clip(-1 + 1e-9, 1 - 1e-9)
    influence_NA = product_NA - 0.5 * rho_A * (rank_N[:, None] ** 2 + ranks.rank_NA**2)
    order = np.argsort(ranks.cluster_N, kind="stable")
    starts = np.flatnonzero(np.diff(ranks.cluster_N[order], prepend=-1))
    sums_CA = np.add.reduceat(influence_NA[order], starts, 0)
    freedom = max(1, len(starts) - 1)
    error_A = np.sqrt((sums_CA**2).sum(0) * (1 + 1 / freedom)) / len(rank_N) / (1 - rho_A**2)
    error_A = np.maximum(error_A, np.finfo(float).tiny)
    t_A = np.abs(np.arctanh(rho_A)) / error_A
    # Student's t as a normal deviate (Abramowitz and Stegun 26.7.8).
    z_A = t_A * (1 - 1 / (4 * freedom)) / np.sqrt(1 + t_A**2 / (2 * freedom))
    p_A = np.array([math.erfc(z / math.sqrt(2)) for z in z_A])
    return rho_A, QUANTILE * (1 + (QUANTILE**2 + 1) / (4 * freedom)) * error_A, p_A


def discoveries(p: np.ndarray, rate: float = FALSE_DISCOVERIES) -> np.ndarray:
    """Return which p-values stand after Benjamini–Hochberg, in the shape of `p`."""
    order = np.argsort(p, axis=None, kind="stable")
    passed = np.flatnonzero(p.ravel()[order] <= rate * np.arange(1, p.size + 1) / max(1, p.size))
    standing = np.zeros(p.size, bool)
    standing[order[: passed[-1] + 1 if passed.size else 0]] = True
    return standing.reshape(p.shape)


def _name(rho_A: np.ndarray, significant_A: np.ndarray, ranks: Ranks) -> str:
    """Return the strongest feature, and the strongest of what it leaves: not the same thing twice."""
    able_A = significant_A & (np.abs(rho_A) >= LEAST_RHO)
    if not able_A.any():
        return UNNAMED
    first = int(np.argmax(np.abs(rho_A) * able_A))
    chosen = [first]
    between_A = ranks.rank_NA[:, first] @ ranks.rank_NA / len(ranks.rank_NA)
    left_A = (rho_A - rho_A[first] * between_A) / np.sqrt(
        np.maximum((1 - rho_A[first] ** 2) * (1 - between_A**2), 1e-9)
    )
    able_A &= (np.abs(left_A) >= LEAST_RHO) & (np.sign(left_A) == np.sign(rho_A))
    able_A[first] = False
    if able_A.any():
        chosen.append(int(np.argmax(np.abs(left_A) * able_A)))
    return ", ".join(_word(ranks.feature_A[at], rho_A[at]) for at in chosen)


def _word(feature: int, rho: float) -> str:
    return FEATURES[feature].more if rho > 0 else FEATURES[feature].less
