"""A map of users and reward bases: the space in which a method compares them, seen along two axes."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons, Tables
from raypref.evaluate.batches import bucket_groups, encode
from raypref.evaluate.protocol import frozen, require_together
from raypref.evaluate.result import Section
from raypref.methods.base import RewardModel
from raypref.schema import Cohort

USERS_PER_GROUP = 4096

Point = tuple[float, float]


class Ellipse(Section):
    """One standard deviation of a user's position, along its own axes."""

    major: float
    minor: float
    angle: float = Field(description="Of the major axis, degrees from the x axis.")


class PreferenceMap(Section):
    """Users and bases on the two principal axes of the space."""

    users: list[int] = Field(description="Numbers in the users table.")
    cohorts: list[Cohort]
    positions: list[Point]
    ellipses: list[Ellipse] | None = Field(description="Null where the method has no uncertainty.")
    bases: list[Point] | None
    explained: Point = Field(description="Share of the variance of users and bases along each axis.")


def map_users(
    model: RewardModel, items: ItemTable, tables: Tables, users: int = 400, seed: int = 0
) -> PreferenceMap | None:
    """Place a random sample of users by all their training comparisons; None where the method has no map.

    Raises:
        MismatchError: items, tables and model do not belong together.
    """
    require_together(model, items, tables)
    sample_U = np.random.default_rng(seed).permutation(len(tables.rows))[:users]
    parts: list[Comparisons] = []
    for buckets in bucket_groups(tables, USERS_PER_GROUP):
        found = tables.comparisons(None, ["train"], buckets)
        parts.append(found.select(np.intersect1d(found.user_U, sample_U)))
    context = Comparisons.concatenate(parts)
    with frozen(model):
        evidence_BPE, weight_BP = encode(model, items, context)
        land = model.landscape(model.infer(evidence_BPE, weight_BP))
    if land is None:
        return None
    mean_BL = _array(land.mean_BL)
    bases_KL = np.zeros((0, mean_BL.shape[1])) if land.bases_KL is None else _array(land.bases_KL)
    center_L, axes_L2, explained = principal(np.concatenate([mean_BL, bases_KL]))
    return PreferenceMap(
        users=context.user_U.tolist(),
        cohorts=["seen" if row >= 0 else "unseen" for row in context.row_U],
        positions=[point(row) for row in (mean_BL - center_L) @ axes_L2],
        ellipses=None if land.var_BL is None else [ellipse(row, axes_L2) for row in _array(land.var_BL)],
        bases=None if land.bases_KL is None else [point(row) for row in (bases_KL - center_L) @ axes_L2],
        explained=explained,
    )


def _array(value: torch.Tensor) -> np.ndarray:
    return value.double().cpu().numpy()


def point(row: np.ndarray) -> Point:
    """Return the first two numbers of a row."""
    return float(row[0]), float(row[1])


def principal(place_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray, Point]:
    """Return the centre, two orthonormal axes with a fixed sign, and the share of variance along each."""
    center_L = place_NL.mean(0)
    _, scale, axes = np.linalg.svd(place_NL - center_L, full_matrices=False)
    axes_L2 = np.zeros((place_NL.shape[1], 2))
    kept = min(2, len(axes))
    axes_L2[:, :kept] = axes[:kept].T
    largest = np.abs(axes_L2).argmax(0)
    axes_L2 *= np.where(axes_L2[largest, [0, 1]] < 0, -1.0, 1.0)
    share = np.zeros(2)
    share[:kept] = scale[:kept] ** 2 / max(float((scale**2).sum()), np.finfo(float).tiny)
    return center_L, axes_L2, point(share)


def ellipse(var_L: np.ndarray, axes_L2: np.ndarray) -> Ellipse:
    """Return one deviation of a user whose coordinates have these variances, on two axes."""
    variance, direction = np.linalg.eigh(axes_L2.T @ (var_L[:, None] * axes_L2))
    minor, major = np.sqrt(np.maximum(variance, 0.0))
    angle = np.degrees(np.arctan2(direction[1, 1], direction[0, 1])) % 180
    return Ellipse(major=float(major), minor=float(minor), angle=float(angle))
