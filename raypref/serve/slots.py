"""Fixed places in a batch: a user's bits do not depend on who else is in it.

Matrix products round a row differently with the shape of the batch, and with the row's place in a tile of the
kernel. So every batch has the same shape, empty places included, and whoever is in it has a place of the same
kind. Then comparisons that came in any order and grouping are the same evidence, and replicas that infer a
user in different company agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from raypref.serve.judge import Judge

PITCH = 4
"""Every fourth place is taken: kernels work on tiles of that many rows."""

COMPARISONS = 16
"""Comparisons in a batch."""

USERS = 4
"""Users in a batch; their comparisons are padded to a power of two, from 4."""


def encode(judge: Judge, chosen_ND: np.ndarray, rejected_ND: np.ndarray) -> np.ndarray:
    """Return evidence_NE of comparisons."""
    evidence_NE = np.empty((len(chosen_ND), judge.evidence_width), np.float32)
    for first in range(0, len(chosen_ND), COMPARISONS):
        rows = slice(first, first + COMPARISONS)
        spread_ME = judge.encode(_spread(chosen_ND[rows]), _spread(rejected_ND[rows]))
        evidence_NE[rows] = spread_ME[::PITCH][: len(evidence_NE[rows])]
    return evidence_NE


def _spread(emb_ND: np.ndarray) -> np.ndarray:
    spread_MD = np.zeros((COMPARISONS * PITCH, emb_ND.shape[1]), emb_ND.dtype)
    spread_MD[: len(emb_ND) * PITCH : PITCH] = emb_ND
    return spread_MD


def infer(judge: Judge, histories: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return vectors_UZ of users, each given as evidence_PE and weight_P; no evidence gives the prior.

    A user whom the method's solver fails on has no finite vector, and is no matter of the others.
    """
    vectors_UZ = np.empty((len(histories), len(judge.prior_Z)), np.float32)
    alike: dict[int, list[int]] = {}
    for row, (_, weight_P) in enumerate(histories):
        alike.setdefault(max(PITCH, 1 << (len(weight_P) - 1).bit_length()), []).append(row)
    for length, rows in alike.items():
        # Nobody, with as many comparisons as this batch has room for: all its users are padded to that.
        nobody = np.zeros((length, judge.evidence_width), np.float32), np.zeros(length, np.float32)
        for first in range(0, len(rows), USERS):
            batch = rows[first : first + USERS]
            places = [nobody] * (USERS * PITCH)
            for place, row in enumerate(batch):
                places[place * PITCH] = histories[row]
            try:
                vectors_UZ[batch] = judge.infer(places)[::PITCH][: len(batch)]
            except torch.linalg.LinAlgError:
                for row in batch:
                    vectors_UZ[row] = infer(judge, [histories[row]])[0] if len(batch) > 1 else np.nan
    return vectors_UZ
