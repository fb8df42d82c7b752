"""Shards: the fixed parts of a run's users, carried by whichever workers there are.

A run has as many shards as it may have workers. A shard holds the rows of its own users where a method has
any, draws its own episodes and gives its own gradient; gradients are added in the order of the shards. So a
step is the same, bit for bit, whether each shard has a worker of its own or one worker carries them all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from raypref.methods.base import RewardModel


@dataclass(frozen=True)
class Shards:
    """The shards of one worker: an equal part, in order, of the `total` of the run."""

    total: int = 1
    rank: int = 0
    """Of this worker."""
    world_size: int = 1
    """Workers there are now, at most `total`."""

    @property
    def numbers(self) -> range:
        """The shards that this worker carries; at least one."""
        return self._of(self.rank)

    def _of(self, rank: int) -> range:
        return range(rank * self.total // self.world_size, (rank + 1) * self.total // self.world_size)

    def add_up(self, part_SG: Tensor) -> Tensor:
        """Return the sum over all shards of the run, added in their order; all workers call it together.

        Each worker adds up one stretch of the vectors, so a worker sends and receives as much as in a ring.

        Args:
            part_SG: one vector for each shard of this worker.
        """
        if self.world_size == 1:
            return _in_order(part_SG)
        size, stretch = part_SG.shape[1], -(-part_SG.shape[1] // self.world_size)
        padded_SG = F.pad(part_SG, (0, stretch * self.world_size - size))
        sent_WSG = padded_SG.view(len(part_SG), self.world_size, stretch).transpose(0, 1).contiguous()
        carried = [len(self._of(rank)) for rank in range(self.world_size)]
        received_SG = part_SG.new_empty(self.total, stretch)
        dist.all_to_all_single(
            received_SG.view(-1),
            sent_WSG.view(-1),
            [shards * stretch for shards in carried],
            [len(part_SG) * stretch] * self.world_size,
        )
        total_WG = part_SG.new_empty(self.world_size, stretch)
        dist.all_gather(list(total_WG), _in_order(received_SG))
        return total_WG.view(-1)[:size]


def _in_order(part_SG: Tensor) -> Tensor:
    total_G = part_SG[0].clone()
    for part_G in part_SG[1:]:
        total_G += part_G
    return total_G


def cut(model: RewardModel, rows: Sequence[Tensor]) -> list[RewardModel]:
    """Return one model for each shard: its parameters are the same tensors, its buffers its own.

    Of the tables in `model.user_rows` each keeps the rows of its shard's users alone.

    Args:
        model: whole; of no use afterwards.
        rows: of each shard, the rows of its users in the table of seen users.
    """
    if len(rows) == 1 and not model.user_rows:
        return [model]
    parameters = dict(model.named_parameters())
    tables = {name: parameters.pop(name) for name in model.user_rows}
    models: list[RewardModel] = []
    for row_U in rows:
        memo: dict[int, Any] = {id(shared): shared for shared in parameters.values()}
        memo |= {id(table): nn.Parameter(table.detach()[row_U]) for table in tables.values()}
        models.append(copy.deepcopy(model, memo))
    return models


def user_tables(model: RewardModel) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that have a row per user, by name."""
    return {name: model.get_parameter(name) for name in model.user_rows}


def shared_parameters(model: RewardModel) -> dict[str, nn.Parameter]:
    """Return all parameters of a model but those with a row per user, by name."""
    return {name: part for name, part in model.named_parameters() if name not in model.user_rows}


def own_rows(model: RewardModel) -> dict[str, Tensor]:
    """Return a copy of the rows of a shard's users, by name."""
    return {name: table.detach().clone() for name, table in user_tables(model).items()}


def shared_state(model: RewardModel) -> dict[str, Tensor]:
    """Return all weights and buffers of a model but the rows of users; not a copy."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in model.user_rows}
