"""What a bundle says otherwise than an earlier one, of the same items and the same users."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raypref.checkpoint import Bundle
from raypref.data.items import ItemTable
from raypref.describe.axes import MOST_USERS, Axes, item_features, principal_axes, rewards, sample_users
from raypref.describe.correlation import center
from raypref.describe.result import Drift, Match, Move, ScoredItem
from raypref.describe.sample import Sample
from raypref.errors import InputError


@torch.no_grad()
def measure_drift(
    name: str, before: Bundle, after: Bundle, items: ItemTable, sample: Sample, axes: Axes, top: int
) -> Drift:
    """Say how far two bundles agree, user by user and basis by basis, and about which items they do not.

    Args:
        name: what the earlier bundle is called.
        before: the earlier bundle.
        after: the bundle that is described.
        items: their embeddings are of both bundles' embedder.
        sample: items, with pairs that answer one prompt.
        axes: of `after`, over the sample.
        top: items that rose and fell most.

    Raises:
        InputError: the bundles share no users, or nothing says which items answer one prompt.
    """
    if not len(sample.pair_M2):
        raise InputError(
            "drift is told by pairs of responses to one prompt, and none are known here: name input.path, or "
            "prepare the comparisons."
        )
    user_2UZ = _shared_users(name, before, after)
    item_2NF = [item_features(bundle, items, sample.row_N) for bundle in (before, after)]
    reward_2UN = [
        rewards(bundle.model, item_NF, user_UZ)
        for bundle, item_NF, user_UZ in zip((before, after), item_2NF, user_2UZ, strict=True)
    ]
    mean_2N = [
        center(reward_UN.mean(0, dtype=np.float64)[None], sample.group_N)[0] for reward_UN in reward_2UN
    ]
    earlier = principal_axes(rewards(before.model, item_2NF[0], sample_users(before)), sample.group_N)
    rose, fell = _moves(sample, _standardised(mean_2N[0]), _standardised(mean_2N[1]), top)
    return Drift(
        against=name,
        users=len(user_2UZ[0]),
        pairs=len(sample.pair_M2),
        agreement=sorted(
            _agreement(before_N, after_N, sample.pair_M2)
            for before_N, after_N in zip(*reward_2UN, strict=True)
        ),
        average=_agreement(mean_2N[0], mean_2N[1], sample.pair_M2),
        bases=_matches(earlier, axes),
        rose=rose,
        fell=fell,
    )


def _shared_users(name: str, before: Bundle, after: Bundle) -> tuple[Tensor, Tensor]:
    """Return the vectors that either bundle keeps of the same users, by their ids."""
    place = {user: row for row, user in enumerate(before.users["user_id"].to_pylist())}
    place_U = np.array([place.get(user, -1) for user in after.users["user_id"].to_pylist()], np.int64)
    row_U = np.flatnonzero(place_U >= 0)
    if not len(row_U):
        raise InputError(
            f"{name}: keeps none of the users that the bundle keeps, so nobody says what drifted."
        )
    row_U = np.sort(np.random.default_rng(0).permutation(row_U)[:MOST_USERS])
    chosen = (before, place_U[row_U]), (after, row_U)
    vectors = [bundle.users["vector"].take(rows).to_pylist() for bundle, rows in chosen]
    return torch.tensor(vectors[0], dtype=torch.float32), torch.tensor(vectors[1], dtype=torch.float32)


def _agreement(before_N: np.ndarray, after_N: np.ndarray, pair_M2: np.ndarray) -> float:
    """Return the share of pairs that both rewards order alike."""
    one_M, other_M = pair_M2.T
    same_M = np.sign(before_N[one_M] - before_N[other_M]) == np.sign(after_N[one_M] - after_N[other_M])
    return round(float(same_M.mean()), 4)


def _matches(before: Axes, after: Axes) -> list[Match]:
    """Return for each basis the earlier one that it is most like; axes have no sign of their own."""
    rho_KK = after.score_KN @ before.score_KN.T / after.score_KN.shape[1]
    nearest_K = np.abs(rho_KK).argmax(1)
    return [
        Match(basis=title, earlier=before.titles[nearest], correlation=round(float(rho_K[nearest]), 3))
        for title, rho_K, nearest in zip(after.titles, rho_KK, nearest_K, strict=True)
    ]


def _standardised(value_N: np.ndarray) -> np.ndarray:
    scale = float(np.sqrt(np.mean(value_N**2)))
    return value_N / scale if scale > 0 else value_N


def _moves(
    sample: Sample, before_N: np.ndarray, after_N: np.ndarray, top: int
) -> tuple[list[Move], list[Move]]:
    order_N = np.argsort(after_N - before_N, kind="stable")

    def moved(at: int) -> Move:
        text = None if sample.responses is None else sample.responses[at]
        place = ScoredItem(item=int(sample.row_N[at]), text=text, score=round(float(after_N[at]), 3))
        return Move(before=round(float(before_N[at]), 3), now=place)

    return [moved(at) for at in order_N[::-1][:top]], [moved(at) for at in order_N[:top]]
