"""Users in batches: their context encoded as evidence, their held-out comparisons as item features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypref.data.episodes import Padded, pad
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons, Tables
from raypref.evaluate.result import Setting
from raypref.methods.base import RewardModel
from raypref.schema import Cohort

ROWS_PER_PASS = 4096
"""Embeddings that are on the device at a time."""


@dataclass(frozen=True)
class UserBatch:
    """Some users, the evidence of all their training comparisons, and what they are judged on."""

    user_B: np.ndarray
    evidence_BPE: Tensor
    weight_BP: Tensor
    """Weight of each training comparison, 0 where padded."""
    count_B: np.ndarray
    """Training comparisons of each user."""
    targets: dict[Setting, Padded]


class ItemFeatures:
    """The item tower's output for the items that comparisons name, computed once each."""

    def __init__(self, model: RewardModel, items: ItemTable, needed_N: np.ndarray) -> None:
        """Run the item tower over the items where `needed_N` is True."""
        ids_N = np.flatnonzero(needed_N)
        self._place_N = np.full(len(needed_N), -1, np.int64)
        self._place_N[ids_N] = np.arange(len(ids_N))
        parts = [
            model.item(_embeddings(model, items, ids_N[first : first + ROWS_PER_PASS]))
            for first in range(0, len(ids_N), ROWS_PER_PASS)
        ]
        self._item_NF = torch.cat(parts)

    def gather(self, ids_BN: np.ndarray) -> Tensor:
        """Return item_BNF of item ids."""
        place_BN = torch.from_numpy(self._place_N[ids_BN]).to(self._item_NF.device)
        return self._item_NF[place_BN]


def bucket_groups(tables: Tables, users: int) -> Iterator[range]:
    """Yield all buckets in groups that hold about `users` users."""
    metadata = tables.metadata
    total = max(1, metadata.seen_users + metadata.unseen_users)
    size = max(1, metadata.buckets * users // total)
    for first in range(0, metadata.buckets, size):
        yield range(first, min(first + size, metadata.buckets))


def user_batches(
    model: RewardModel,
    items: ItemTable,
    tables: Tables,
    cohort: Cohort,
    settings: Sequence[Setting],
    buckets: range,
    users: int,
) -> Iterator[UserBatch]:
    """Yield the users of some buckets that have held-out comparisons, at most `users` at a time."""
    context = tables.comparisons(cohort, ["train"], buckets)
    for user_B, targets in target_batches(tables, cohort, settings, buckets, users):
        own = context.select(user_B)
        yield UserBatch(user_B, *encode(model, items, own), own.counts_U, targets)


def target_batches(
    tables: Tables, cohort: Cohort, settings: Sequence[Setting], buckets: range, users: int
) -> Iterator[tuple[np.ndarray, dict[Setting, Padded]]]:
    """Yield the users of some buckets that have held-out comparisons, and these, `users` at a time."""
    found: dict[Setting, Comparisons] = {
        setting: tables.comparisons(cohort, [setting], buckets) for setting in settings
    }
    user_U = np.unique(np.concatenate([part.user_U for part in found.values()]))
    for first in range(0, len(user_U), users):
        user_B = user_U[first : first + users]
        everybody = np.arange(len(user_B))
        targets: dict[Setting, Padded] = {
            setting: pad(part.select(user_B), everybody) for setting, part in found.items()
        }
        yield user_B, targets


def encode(model: RewardModel, items: ItemTable, comparisons: Comparisons) -> tuple[Tensor, Tensor]:
    """Return evidence_BPE and weight_BP, zero where padded; P is at least 1."""
    parts = []
    for first in range(0, max(1, len(comparisons)), ROWS_PER_PASS):
        rows = slice(first, first + ROWS_PER_PASS)
        chosen_ND = _embeddings(model, items, comparisons.chosen_M[rows])
        parts.append(model.evidence(chosen_ND, _embeddings(model, items, comparisons.rejected_M[rows])))
    evidence_ME = torch.cat(parts)
    device, counts_B = evidence_ME.device, torch.from_numpy(comparisons.counts_U)
    width = max(1, int(comparisons.counts_U.max(initial=0)))
    mask_BP = (torch.arange(width) < counts_B[:, None]).to(device)
    evidence_BPE = evidence_ME.new_zeros(*mask_BP.shape, evidence_ME.shape[1])
    evidence_BPE[mask_BP] = evidence_ME
    weight_BP = torch.zeros(mask_BP.shape, device=device)
    weight_BP[mask_BP] = torch.from_numpy(comparisons.weight_M).to(device)
    return evidence_BPE, weight_BP


def shuffle(batch: UserBatch, seed: int) -> tuple[Tensor, Tensor]:
    """Return evidence_BPE and weight_BP with each user's comparisons in a random order, padding last.

    The order depends on the seed, the user and the place of the comparison, never on the batch.
    """
    order_BP = keyed_order(batch.user_B, batch.count_B, batch.weight_BP.shape[1], seed)
    order_BP = torch.from_numpy(order_BP).to(batch.weight_BP.device)
    index_BPE = order_BP[:, :, None].expand(batch.evidence_BPE.shape)
    return batch.evidence_BPE.gather(1, index_BPE), batch.weight_BP.gather(1, order_BP)


def keyed_order(user_B: np.ndarray, count_B: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Return order_BP: places of each user's comparisons in a random order, those that are padded last."""
    mask_BP = np.arange(width) < count_B[:, None]
    key_BP = _mix(_mix(np.uint64(seed % 2**64)) ^ user_B.astype(np.uint64)[:, None])
    key_BP = _mix(key_BP + np.arange(width, dtype=np.uint64)) >> np.uint64(1)
    key_BP[~mask_BP] = np.iinfo(np.uint64).max
    return np.argsort(key_BP, axis=1, kind="stable")


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    """Return splitmix64 of each value: a random permutation of the 64-bit integers."""
    value = np.atleast_1d(np.asarray(value, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _embeddings(model: RewardModel, items: ItemTable, ids_N: np.ndarray) -> Tensor:
    return torch.from_numpy(items.gather(ids_N)).to(model.center_D.device)
