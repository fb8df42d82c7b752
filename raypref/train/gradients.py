"""The gradient of a step: the mean over the shards, however they are dealt to the workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from raypref.methods.base import RewardModel
from raypref.train.shards import Shards, user_tables


class Gradients:
    """Collects what each shard's loss says of the parameters; `average` leaves the mean in their `grad`.

    A parameter without a gradient counts as zero: shards may meet different users. The rows of users are in
    one shard alone, so theirs never leave the worker.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], models: Sequence[RewardModel], shards: Shards
    ) -> None:
        """Take what is trained, all of it, and the models of this worker's shards."""
        self._tables = [list(user_tables(model).values()) for model in models]
        mine = {id(table) for tables in self._tables for table in tables}
        self._all = parameters
        self._shared = [parameter for parameter in parameters if id(parameter) not in mine]
        self._shards = shards
        self._parts: list[Tensor] = []

    def collect(self) -> None:
        """Take the gradient of the next of this worker's shards, which has just been computed."""
        if self._shards.total == 1:
            return
        tables = self._tables[len(self._parts)]
        for parameter in [*self._shared, *tables]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # All that other shards need to know of a shard's rows is how long their gradient is.
        squared = sum((_gradient(table).square().sum() for table in tables), torch.zeros(()))
        flat = [_gradient(parameter).reshape(-1) for parameter in self._shared]
        self._parts.append(torch.cat([*flat, squared.to(flat[0]).reshape(1)]))
        for parameter in self._shared:
            parameter.grad = None

    def average(self, longest: float) -> Tensor:
        """Set the mean gradient, no longer than `longest`, and return the norm that it had; a scalar.

        The norm is that of the whole gradient, rows of all users included, the same on all workers.
        """
        total = self._shards.total
        if total == 1:
            return clip_grad_norm_(self._all, longest)
        mean_G = self._shards.add_up(torch.stack(self._parts)) / total
        self._parts.clear()
        flat = mean_G[:-1].split([parameter.numel() for parameter in self._shared])
        for parameter, gradient in zip(self._shared, flat, strict=True):
            parameter.grad = gradient.view_as(parameter)
        norm = get_total_norm([_gradient(parameter) for parameter in self._shared])
        if any(self._tables):
            for table in (table for tables in self._tables for table in tables):
                _gradient(table).div_(total)
            norm = torch.linalg.vector_norm(torch.stack([norm, (mean_G[-1] / total).sqrt()]))
        clip_grads_with_norm_(self._all, longest, norm)
        return norm


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
