"""Whether a method's latents say anything of their users.

A latent can be busy and useless, or idle. The first is told by giving users somebody else's vector, which
any method has; the second by the posteriors of the methods that have one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raypref.data.tables import Tables
from raypref.evaluate.result import Collapse, Setting
from raypref.metrics import Spread, finite, mutual_information
from raypref.schema import Cohort
from raypref.types import Latent

SAMPLED_USERS = 1024
"""Users of a cohort whose vectors and posteriors are kept: memory does not grow with users."""


class Sample:
    """Some users of a cohort, whose vectors are given to others.

    A user of the sample is given the next one's, anybody else one that their number picks: the cohort's
    users alone decide, never the batches that they come in. Up to SAMPLED_USERS users are all in the
    sample, so each vector is given away once.
    """

    def __init__(self, tables: Tables, cohort: Cohort, settings: Sequence[Setting]) -> None:
        """Draw the sample among the users that are judged in one of the settings."""
        columns = {name: tables.users[name].to_numpy() for name in ("user", *settings)}
        judged_U = np.logical_or.reduce([columns[setting] > 0 for setting in settings])
        judged_U &= tables.users["cohort"].to_numpy() == cohort
        users = np.random.default_rng(0).permutation(np.sort(columns["user"][judged_U]))
        self.user_S = users[:SAMPLED_USERS].astype(np.int64)
        self._sorter_S = np.argsort(self.user_S)
        self._vectors: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.user_S)

    def find(self, user_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows of a batch are in the sample, and where in it they are."""
        at_B = np.minimum(np.searchsorted(self.user_S, user_B, sorter=self._sorter_S), len(self) - 1)
        place_B = self._sorter_S[at_B]
        row = np.flatnonzero(self.user_S[place_B] == user_B)
        return row, place_B[row]

    def keep(self, user_B: np.ndarray, draws: Sequence[Tensor]) -> None:
        """Keep the vectors of those users of a batch who are in the sample, one a draw of the shots."""
        row, place = self.find(user_B)
        if not self._vectors:
            self._vectors = [user_BZ.new_zeros(len(self), user_BZ.shape[1]) for user_BZ in draws]
        for kept_SZ, user_BZ in zip(self._vectors, draws, strict=True):
            kept_SZ[torch.from_numpy(place)] = user_BZ[torch.from_numpy(row)]

    def others(self, user_B: np.ndarray) -> list[Tensor]:
        """Return another user's vector for each user, one a draw of the shots; there must be two users."""
        row, place = self.find(user_B)
        place_B = user_B % len(self)
        place_B[row] = (place + 1) % len(self)
        return [kept_SZ[torch.from_numpy(place_B)] for kept_SZ in self._vectors]


class Posteriors:
    """What the posteriors of a cohort add up to."""

    def __init__(self, sample: Sample) -> None:
        """Start without users; mutual information is that of the sample."""
        self._sample = sample
        self._spread: Spread | None = None
        self._kl = 0.0
        self._mean_SL = self._var_SL = np.zeros((0, 0))

    def add(self, user_B: np.ndarray, latent: Latent) -> None:
        """Add a batch of users."""
        spread = Spread.of(_array(latent.code_BL))
        mean_BL, var_BL = _array(latent.mean_BL), _array(latent.var_BL)
        if self._spread is None:
            self._mean_SL, self._var_SL = np.zeros((2, len(self._sample), mean_BL.shape[1]))
        self._spread = spread if self._spread is None else self._spread + spread
        self._kl += float(finite(_array(latent.kl_B), "KL").sum())
        row, place = self._sample.find(user_B)
        self._mean_SL[place], self._var_SL[place] = mean_BL[row], var_BL[row]

    def close(self, threshold: float) -> Collapse | None:
        """Return the finished numbers, None where the method has no posteriors."""
        if self._spread is None:
            return None
        return Collapse(
            active_units=self._spread.active_units(threshold),
            units=len(self._spread.mean_L),
            kl=self._kl / self._spread.count,
            mutual_information=mutual_information(self._mean_SL, self._var_SL),
        )


def _array(value: Tensor) -> np.ndarray:
    return value.double().cpu().numpy()
