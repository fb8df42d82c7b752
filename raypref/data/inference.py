"""Many users in batches of bounded size: their contexts, their held-out comparisons, their vectors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from raypref.data.episodes import pad
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons
from raypref.methods.base import RewardModel
from raypref.types import Episodes, Pairs


def contexts(items: ItemTable, comparisons: Comparisons, users_per_batch: int) -> Iterator[Pairs]:
    """Yield all comparisons of each user, in batches of users, in their order."""
    for first in range(0, len(comparisons.user_U), users_per_batch):
        users = np.arange(first, min(first + users_per_batch, len(comparisons.user_U)))
        chosen_BP, rejected_BP, mask_BP = pad(comparisons, users)
        yield Pairs(gather(items, chosen_BP), gather(items, rejected_BP), torch.from_numpy(mask_BP))


class HeldOut:
    """Episodes with training comparisons as context and held-out ones as target; may be iterated again.

    Embeddings are gathered when a batch is asked for, so memory does not grow with the users.
    """

    def __init__(
        self, items: ItemTable, learn: Comparisons, held: Comparisons, users: int, users_per_batch: int
    ) -> None:
        """Take the first `users` users that have held-out comparisons."""
        self._items = items
        self._held = held.select(held.user_U[:users])
        self._learn = learn.select(self._held.user_U)
        self._users_per_batch = users_per_batch

    def __len__(self) -> int:
        return -(-len(self._held.user_U) // self._users_per_batch)

    def __iter__(self) -> Iterator[Episodes]:
        batches = zip(
            contexts(self._items, self._learn, self._users_per_batch),
            contexts(self._items, self._held, self._users_per_batch),
            strict=True,
        )
        row_U = torch.from_numpy(self._held.row_U)
        for number, (context, target) in enumerate(batches):
            first = number * self._users_per_batch
            yield Episodes(context, target, row_U[first : first + self._users_per_batch])


def gather(items: ItemTable, ids: np.ndarray) -> Tensor:
    """Return the embeddings of item ids of any shape, float16, with one more axis D."""
    return torch.from_numpy(items.gather(ids.reshape(-1)).reshape(*ids.shape, -1))


@torch.no_grad()
def infer_users(
    model: RewardModel, items: ItemTable, comparisons: Comparisons, users_per_batch: int
) -> Tensor:
    """Return vectors_UZ of the users of `comparisons`, in their order, from all their comparisons."""
    device = model.center_D.device
    batches = (pairs.to(device) for pairs in contexts(items, comparisons, users_per_batch))
    return torch.cat([model.infer(model.encode(pairs), pairs.mask_BP).cpu() for pairs in batches])
