"""Users' rewards of items, taken apart: what all share, and the principal axes of what they do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypref.checkpoint import Bundle
from raypref.data.items import ItemTable
from raypref.describe.correlation import center
from raypref.errors import InputError
from raypref.methods.base import RewardModel

MOST_AXES = 16
LEAST_SHARE = 0.01
"""Of what users do not share; a smaller axis is left in the rest."""
ROUNDING = 1e-8
"""Share of the variance below which users do not differ: float32 has no more digits."""
ITEMS_PER_PASS, USERS_PER_PASS = 512, 128
ROWS_PER_PASS = 4096
MOST_USERS = 1_000


@dataclass(frozen=True)
class Axes:
    """Bases, the average user's reward first where there is one."""

    score_KN: np.ndarray
    """Of every item, mean 0 in each prompt, variance 1 over all."""
    share_K: np.ndarray
    """Of the variance of rewards over items, averaged over users; with `rest` they sum to 1."""
    common: bool
    """Whether the first basis is the average user's reward."""
    rest: float
    personal: bool
    """Whether users differ at all."""

    @property
    def titles(self) -> list[str]:
        """What the bases are called: `common` where there is one, then `axis 1`, `axis 2` …."""
        axes = [f"axis {number + 1}" for number in range(len(self.share_K) - self.common)]
        return ["common", *axes] if self.common else axes


def sample_users(bundle: Bundle) -> Tensor:
    """Return the vectors (U, Z) of a sample of the bundle's users, in row order."""
    chosen = np.sort(np.random.default_rng(0).permutation(bundle.users.num_rows)[:MOST_USERS])
    return torch.tensor(bundle.users["vector"].take(chosen).to_pylist(), dtype=torch.float32)


def item_features(bundle: Bundle, items: ItemTable, row_N: np.ndarray) -> Tensor:
    """Return what the bundle's model makes of items of the table (N, F)."""
    held = items.with_prompts(bundle.info.method.needs_prompts)
    parts = np.split(row_N, range(ROWS_PER_PASS, len(row_N), ROWS_PER_PASS))
    return torch.cat([bundle.model.item(torch.from_numpy(held.gather(part))) for part in parts])


def rewards(model: RewardModel, item_NF: Tensor, user_UZ: Tensor) -> np.ndarray:
    """Return each item's mean reward for each user, float32 (U, N)."""
    out_UN = np.empty((len(user_UZ), len(item_NF)), np.float32)
    for first in range(0, len(user_UZ), USERS_PER_PASS):
        user_BZ = user_UZ[first : first + USERS_PER_PASS]
        for start in range(0, len(item_NF), ITEMS_PER_PASS):
            part_NF = item_NF[start : start + ITEMS_PER_PASS]
            mean_BN = model.reward(part_NF.expand(len(user_BZ), -1, -1), user_BZ).mean_BN
            out_UN[first : first + len(user_BZ), start : start + len(part_NF)] = mean_BN.cpu().numpy()
    return out_UN


def doubts(model: RewardModel, higher_NF: Tensor, lower_NF: Tensor, user_UZ: Tensor) -> np.ndarray | None:
    """Return the standard deviation of reward differences for each user (U, N); None where none is known."""
    parts: list[Tensor] = []
    for user_BZ in user_UZ.split(USERS_PER_PASS):
        shape = (len(user_BZ), -1, -1)
        var_BN = model.doubt(higher_NF.expand(shape), lower_NF.expand(shape), user_BZ)
        if var_BN is None:
            return None
        parts.append(var_BN.clamp_min(0).sqrt())
    return torch.cat(parts).double().cpu().numpy()


def principal_axes(reward_UN: np.ndarray, group_N: np.ndarray) -> Axes:
    """Take rewards apart, less the mean of each prompt, as only responses to one prompt are ever compared.

    R_u = m + Σ_k w_uk a_k with m the mean over users and a_k the principal axes of the rest, so that the mean
    over users of Var(R_u) is Var(m) + Σ_k mean(w_uk²). The axes do not depend on how a method writes its
    bases: rotating, flipping or rescaling these leaves R as it is. The long tail of an axis is its positive
    end.

    Raises:
        InputError: all items have the same reward.
    """
    users, items = reward_UN.shape
    mean_N = center(reward_UN.mean(0, dtype=np.float64)[None], group_N)[0]
    gram_UU = np.zeros((users, users))
    personal_UN = np.empty_like(reward_UN)
    for user in range(users):
        personal_UN[user] = center(reward_UN[user][None], group_N)[0] - mean_N
    for start in range(0, items, ITEMS_PER_PASS):
        part_UN = personal_UN[:, start : start + ITEMS_PER_PASS].astype(np.float64)
        gram_UU += part_UN @ part_UN.T / items
    shared, own = float(np.mean(mean_N**2)), float(gram_UU.trace()) / users
    total, scale = shared + own, float(np.mean(reward_UN.astype(np.float64) ** 2))
    if total <= ROUNDING**2 * scale:
        raise InputError("the bundle gives every response to a prompt the same reward; train it first.")
    personal = own > ROUNDING * total
    scores: list[np.ndarray] = []
    shares: list[float] = []
    common = shared > ROUNDING * total
    if common:
        scores.append(mean_N / np.sqrt(shared))
        shares.append(shared / total)
    if personal:
        value_U, vector_UU = np.linalg.eigh(gram_UU)
        for at in np.argsort(-value_U, kind="stable")[:MOST_AXES]:
            if value_U[at] / users < LEAST_SHARE * own:
                break
            axis_N = vector_UU[:, at] @ personal_UN / np.sqrt(value_U[at])
            scores.append(axis_N if np.sum(axis_N**3) >= 0 else -axis_N)
            shares.append(float(value_U[at]) / users / total)
    return Axes(np.stack(scores), np.array(shares), common, max(0.0, 1.0 - sum(shares)), personal)
