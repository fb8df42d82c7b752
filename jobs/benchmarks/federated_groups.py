"""How well groups that were found are those that there are."""

from __future__ import annotations

import numpy as np


def adjusted_rand(found_U: np.ndarray, true_U: np.ndarray) -> float:
    """Return the adjusted Rand index of two groupings of users: 1 the same, 0 no better than chance.

    Hubert and Arabie, Journal of Classification 1985.
    """
    _, found_U = np.unique(found_U, return_inverse=True)
    _, true_U = np.unique(true_U, return_inverse=True)
    count_FT = np.zeros((found_U.max() + 1, true_U.max() + 1))
    np.add.at(count_FT, (found_U, true_U), 1)
    together = _pairs(count_FT).sum()
    rows, columns = _pairs(count_FT.sum(1)).sum(), _pairs(count_FT.sum(0)).sum()
    chance = rows * columns / _pairs(np.array(float(len(found_U))))
    most = (rows + columns) / 2
    return float((together - chance) / (most - chance)) if most != chance else 1.0


def _pairs(count: np.ndarray) -> np.ndarray:
    return count * (count - 1) / 2
