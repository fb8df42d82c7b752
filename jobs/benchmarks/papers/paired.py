"""Differences between methods, user by user, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from record import Record, Trial
from trials import run_trials

from papers.claim import Bench
from raypref.errors import InputError
from raypref.metrics import bootstrap


def records(bench: Bench, trials: Sequence[Trial]) -> list[Record]:
    """Return the trials' records.

    Raises:
        InputError: a trial failed, so nothing can be said of the claim.
    """
    found = run_trials(trials, bench.work, bench.processes, data=bench.data)
    for record in found:
        if record.error:
            raise InputError(f"{record.trial.label} on {record.trial.population}: {record.error}")
    return found


def estimate(value_U: ArrayLike) -> dict[str, Any]:
    """Return a mean over users with its 95 % interval."""
    found = bootstrap(value_U)
    return {"mean": found.mean, "interval": [found.low, found.high]}


def accuracies(of: Sequence[Record], cell: str) -> np.ndarray:
    """Return accuracy_U of the users of all seeds in one cell."""
    return np.concatenate([record.cells[cell].user_accuracy for record in of])


def lead(own: Sequence[Record], other: Sequence[Record], cell: str) -> np.ndarray:
    """Return delta_U: accuracy of one method less another's, for the users of all seeds.

    Raises:
        InputError: the two were not evaluated on the same users.
    """
    for one, two in zip(own, other, strict=True):
        if one.cells[cell].user != two.cells[cell].user or one.trial.seed != two.trial.seed:
            raise InputError(f"{cell}: {one.trial.label} and {two.trial.label} judged other users.")
    return accuracies(own, cell) - accuracies(other, cell)


def growth(less_U: np.ndarray, more_U: np.ndarray) -> dict[str, Any]:
    """Return how much larger the second group's mean is; the groups are different users."""
    difference = float(more_U.mean() - less_U.mean())
    error = 1.96 * float(np.sqrt(more_U.var() / len(more_U) + less_U.var() / len(less_U)))
    return {"mean": difference, "interval": [difference - error, difference + error]}


def above(found: dict[str, Any]) -> bool:
    """Return whether an estimate is above zero beyond its interval."""
    return found["interval"][0] > 0


def below(found: dict[str, Any]) -> bool:
    """Return whether an estimate is below zero beyond its interval."""
    return found["interval"][1] < 0


def points(found: dict[str, Any], digits: int = 1) -> str:
    """Return an estimate of a difference in points, with its interval."""
    low, high = (f"{100 * end:+.{digits}f}" for end in found["interval"])
    return f"{100 * found['mean']:+.{digits}f} [{low}, {high}]"
