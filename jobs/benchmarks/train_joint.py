"""Mini-batch Adam on users' weights and bases at once: the textbook way to train LoRe, beside `train.py`.

Every seen user owns a row of K weights, a parameter as the bases are, and Adam moves both along the gradient
of a mini-batch of users with all their comparisons; nothing is solved for within a step. Two forms:
`published` has LoRe's simplex weights, loss and start; `map` has our model and penalties with the rows at
their most probable values. Rows have a rate of their own, which helps, and a seen user is judged with the row
that training left; for `map` also with our posterior under its heads, and the better of the two counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_peers import World, accuracy, ranked_right, stepped

from raypref.methods import LoReConfig
from raypref.methods.base import VETTED_WIDTH, Recipe
from raypref.methods.lore import LoRe, PublishedLoRe
from raypref.train.session import SCALE_SAMPLE
from raypref.types import Dims, Episodes, Loss


class JointLoRe(LoRe):
    """Our model at its most probable weights: r_u = b·e + w_uᵀVᵀe, w_u ~ N(0, I), with our penalties.

    A step sees all comparisons of its users, so each user's ½‖w_u‖² stands in it whole, per comparison.
    """

    def __init__(self, dims: Dims, row_rate: float) -> None:
        """Start from our random heads and small random rows.

        Args:
            dims: of the data.
            row_rate: learning rate of the rows.
        """
        super().__init__(LoReConfig(), dims)
        self.row_rate = row_rate
        self.rows_UK = nn.Parameter(0.1 * torch.randn(dims.users, self.config.bases))

    def own(self, user_B: Tensor) -> Tensor:
        """Return how seen users weigh the features, the common reward once."""
        return F.pad(self.rows_UK[user_B], (1, 0), value=1.0)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the negative log posterior per comparison, the population's loss and the penalties."""
        config, mask_BP = self.config, episodes.target.mask_BP
        evidence_BPE, count = self.encode(episodes.target), mask_BP.sum()
        margin_BP = (evidence_BPE @ self.own(episodes.user_B).unsqueeze(-1)).squeeze(-1)
        personal = (F.softplus(-margin_BP) * mask_BP).sum() / count
        prior = 0.5 * self.rows_UK[episodes.user_B].square().sum() / count
        population = (F.softplus(-evidence_BPE[..., 0]) * mask_BP).sum() / count
        penalty = config.basis_l2 * self.ridge(self.bases_DK)
        penalty = penalty + (1 + config.population) * config.common_l2 * self.ridge(self.common_D)
        return Loss(personal + prior + config.population * population + penalty, {})

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return heads, and rows with their own rate."""
        yield {"params": [self.common_D, self.bases_DK], "lr": recipe.lr, "weight_decay": 0.0}
        yield {"params": [self.rows_UK], "lr": self.row_rate, "weight_decay": 0.0}


class JointPublishedLoRe(PublishedLoRe):
    """LoRe as published, simplex weights and its loss, in mini-batches."""

    def __init__(self, dims: Dims, row_rate: float) -> None:
        """Start as published.

        Args:
            dims: of the data.
            row_rate: learning rate of the rows.
        """
        super().__init__(LoReConfig(solver="adam"), dims)
        self.row_rate = row_rate

    def own(self, user_B: Tensor) -> Tensor:
        """Return how seen users weigh the features."""
        return torch.softmax(self.logits_UK[user_B], -1)

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return bases, and rows with their own rate."""
        yield {"params": [self.bases_DK], "lr": recipe.lr, "weight_decay": 0.0}
        yield {"params": [self.logits_UK], "lr": self.row_rate, "weight_decay": 0.0}


@dataclass(frozen=True)
class Grid:
    """Settings of a form that are tried, each with each.

    They lie around the best of a wider search for 1,000 users at D = 384; elsewhere the best may be outside.
    """

    form: type[JointLoRe | JointPublishedLoRe]
    rates: tuple[float, ...]
    """Of the heads at D up to 384; beyond they fall as 1/D."""
    row_rates: tuple[float, ...]
    clip: float


GRIDS = {
    "published": Grid(JointPublishedLoRe, (0.1, 0.2, 0.4), (0.3,), 1e6),
    "map": Grid(JointLoRe, (0.01, 0.03), (1.0,), 1.0),
}


def joint(world: World, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return seconds and accuracy of every form at every setting and length."""
    found: list[dict[str, Any]] = []
    for name, grid in GRIDS.items():
        for rate in grid.rates:
            for row_rate in grid.row_rates:
                for steps in lengths:
                    head_rate = rate * min(1.0, VETTED_WIDTH / world.dims.embedding)
                    recipe = Recipe(
                        steps=steps, warmup=0.08, users_per_step=128, targets=64, lr=head_rate, clip=grid.clip
                    )
                    run = {"form": name, "rate": head_rate, "row_rate": row_rate, "steps": steps}
                    found.append(run | _trained(grid.form, row_rate, world, recipe))
    return found


def _trained(
    form: type[JointLoRe | JointPublishedLoRe], row_rate: float, world: World, recipe: Recipe
) -> dict[str, float]:
    torch.manual_seed(world.seed)
    model = form(world.dims, row_rate)
    model.fit_scale(torch.from_numpy(world.items.sample(SCALE_SAMPLE, world.seed)))
    seconds = sum(taken for _, taken in stepped(model, world, recipe))
    own = ranked_right(
        world, lambda batch: (model.encode(batch.target) @ model.own(batch.user_B).unsqueeze(-1)).squeeze(-1)
    )
    best = max(own, accuracy(model, world)) if isinstance(model, JointLoRe) else own
    return {"seconds": seconds, "accuracy": best}
