"""The arithmetic of a part, in batches of bounded size: evidence, vectors, rewards.

Every batch is cut by the part alone, so a part is the same to the last bit whoever makes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons
from raypref.errors import InputError
from raypref.methods.base import RewardModel
from raypref.types import Reward

ROWS_PER_PASS = 512
"""Embeddings that are encoded at a time: they stay in the processor's cache."""

PLACES = 1 << 14
"""Comparisons, or candidates, in a batch of users, padding included."""


@torch.no_grad()
def evidence_of(model: RewardModel, items: ItemTable, comparisons: Comparisons) -> Tensor:
    """Return evidence_ME of comparisons, in their order."""
    parts: list[Tensor] = []
    for first in range(0, max(1, len(comparisons)), ROWS_PER_PASS):
        rows = slice(first, first + ROWS_PER_PASS)
        chosen_ND = torch.from_numpy(items.gather(comparisons.chosen_M[rows]))
        rejected_ND = torch.from_numpy(items.gather(comparisons.rejected_M[rows]))
        parts.append(model.evidence(chosen_ND, rejected_ND).float())
    return torch.cat(parts)


@torch.no_grad()
def features_of(model: RewardModel, items: ItemTable, ids_N: np.ndarray) -> Tensor:
    """Return item_NF of item ids."""
    parts = [
        model.item(torch.from_numpy(items.gather(ids_N[first : first + ROWS_PER_PASS])))
        for first in range(0, max(1, len(ids_N)), ROWS_PER_PASS)
    ]
    return torch.cat(parts)


# Not inference_mode: the published solvers of some methods follow gradients.
@torch.no_grad()
def vectors_of(model: RewardModel, evidence_ME: Tensor, comparisons: Comparisons) -> Tensor:
    """Return vectors_UZ of the users of `comparisons`, who may have made none.

    Raises:
        InputError: a vector is not finite.
    """
    weight_M = torch.from_numpy(comparisons.weight_M)
    vectors_UZ: Tensor | None = None
    for users_B, index_BP, mask_BP in _batches(comparisons.offsets):
        mask_BP1 = mask_BP.unsqueeze(-1)
        if len(evidence_ME):
            evidence_BPE = torch.where(mask_BP1, evidence_ME[index_BP], 0.0)
            weight_BP = torch.where(mask_BP, weight_M[index_BP], 0.0)
        else:
            evidence_BPE = evidence_ME.new_zeros(*mask_BP.shape, evidence_ME.shape[1])
            weight_BP = torch.zeros(mask_BP.shape)
        user_BZ = model.infer(evidence_BPE, weight_BP)
        if vectors_UZ is None:
            vectors_UZ = user_BZ.new_empty(len(comparisons.user_U), user_BZ.shape[1])
        vectors_UZ[users_B] = user_BZ
    if vectors_UZ is None:
        raise ValueError("a part has at least one user")
    bad_U = ~torch.isfinite(vectors_UZ).all(1)
    if bad_U.any():
        raise InputError(
            f"{int(bad_U.sum())} users have no finite vector, first user {comparisons.user_U[bad_U][0]}: "
            "their comparisons' embeddings or weights are too large, or the bundle is unusable."
        )
    return vectors_UZ


@torch.no_grad()
def rewards_of_list(
    model: RewardModel, item_NF: Tensor, user_UZ: Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield mean_BN and std_BN of the same items for every user, in their order, in batches of users.

    The standard deviation is None where the method has no uncertainty.
    """
    for user_BZ in user_UZ.split(max(1, PLACES // max(1, len(item_NF)))):
        yield _checked(model, model.reward(item_NF.expand(len(user_BZ), -1, -1), user_BZ))


@torch.no_grad()
def rewards_of_own(
    model: RewardModel, item_NF: Tensor, place_M: np.ndarray, offsets: np.ndarray, user_UZ: Tensor
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mean_M and std_M of every user's own candidates.

    Args:
        model: the method.
        item_NF: features of the items that anybody has.
        place_M: row of `item_NF` of each candidate, sorted by user.
        offsets: where each user's candidates begin, U + 1 of them.
        user_UZ: vectors of the users.
    """
    place_of_M = torch.from_numpy(place_M)
    mean_M = np.empty(len(place_M), np.float32)
    std_M = np.empty(len(place_M), np.float32) if model.uncertain else None
    for users_B, index_BN, mask_BN in _batches(offsets) if len(place_M) else ():
        reward = model.reward(item_NF[place_of_M[index_BN]], user_UZ[users_B])
        mean_BN, std_BN = _checked(model, reward, mask_BN)
        mean_M[index_BN[mask_BN].numpy()] = mean_BN[mask_BN.numpy()]
        if std_M is not None and std_BN is not None:
            std_M[index_BN[mask_BN].numpy()] = std_BN[mask_BN.numpy()]
    return mean_M, std_M


def _checked(
    model: RewardModel, reward: Reward, mask_BN: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    mean_BN = reward.mean_BN
    real_BN = mean_BN if mask_BN is None else mean_BN[mask_BN]
    if not bool(torch.isfinite(real_BN).all()):
        raise InputError("a score is not finite. The bundle or the users are unusable: make them again.")
    if reward.var_BN is None or not model.uncertain:
        return mean_BN.numpy(), None
    return mean_BN.numpy(), reward.var_BN.clamp_min(0.0).sqrt().numpy()


def _batches(offsets: np.ndarray) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield users_B, index_BP and mask_BP: users of like counts side by side, so that little is padded.

    Places that are padded have index 0.
    """
    count_U = np.diff(offsets)
    order_U = np.argsort(count_U, kind="stable")
    end = len(order_U)
    while end:
        # From the user who has most: the batch is as wide as that.
        width = max(1, int(count_U[order_U[end - 1]]))
        users_B = order_U[max(0, end - max(1, PLACES // width)) : end]
        mask_BP = np.arange(width) < count_U[users_B, None]
        index_BP = np.where(mask_BP, offsets[users_B, None] + np.arange(width), 0)
        yield torch.from_numpy(users_B), torch.from_numpy(index_BP), torch.from_numpy(mask_BP)
        end -= len(users_B)
