"""PAL: pluralistic alignment; a user is an ideal point among prototypes, a reward is nearness to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from raypref.methods.base import Recipe, RewardModel
from raypref.methods.simplex import PointsModel, SimplexConfig, WeightsModel
from raypref.types import Dims, Episodes, Loss, Reward

PUBLISHED = {
    "prototypes": 2,
    "width": 512,
    "recipe": {
        "steps": 1000,
        "schedule": "constant",
        "warmup": 0.0,
        "users_per_step": 1000,
        "targets": 1,
        "lr": 1e-4,
        "weight_decay": 0.01,
        "clip": 1e6,
    },
}
"""The authors' sizes, rates and about 20 epochs; a step has one comparison of many users each, not four."""


class PALConfig(SimplexConfig):
    """Pluralistic alignment: a user is a point on the simplex of a few prototypes."""

    citation: ClassVar[str] = "PAL, arXiv 2406.08469 (ICLR 2025)"

    type: Literal["pal"] = "pal"
    recipe: Recipe = Recipe(steps=250, warmup=0.08, users_per_step=128, targets=64, lr=2e-2)
    projector: Literal["linear", "mlp2"] = Field(
        default="linear",
        description="posterior only: how embeddings reach the preference space; mlp2 adds the published "
        "residual network, which adamw always has.",
    )
    projector_l2: NonNegativeFloat = Field(
        default=0.003,
        description="posterior only: penalty on the squared norm of the projector, its D-wide "
        "part growing with D from 384.",
    )

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the published sizes and recipe for the published solver."""
        return PUBLISHED if raw.get("solver") == "adamw" else {}

    def build(self, dims: Dims) -> RewardModel:
        """Return an untrained model."""
        return PublishedPAL(self, dims) if self.solver == "adamw" else PAL(self, dims)


class PAL(PointsModel):
    """r_u = Σ_s c_us r_s, r_s = b·e + d_s − Σ_t π_t d_t, d_s = −‖f(e) − f(w_sP)‖ (PAL, arXiv 2406.08469).

    PAL made Bayesian: the w_s are the points of the simplex. A user nothing is known of has the reward b·e,
    which a Bradley–Terry loss of its own fits to everybody. Training maximises the marginal likelihood of
    each user's comparisons, log Σ_s π_s Π_i σ(Δ_is). No user owns a parameter.
    """

    heads = ("common_D", "down_DL")

    config: PALConfig

    def __init__(self, config: PALConfig, dims: Dims) -> None:
        """Draw the points; start from a zero common reward, small projections and a flat prior."""
        super().__init__(config, dims)
        corners, width = config.prototypes, config.width
        self.common_D = nn.Parameter(torch.zeros(dims.embedding))
        spread = 0.3 / math.sqrt(dims.embedding)
        self.down_DL = nn.Parameter(spread * torch.randn(dims.embedding, width))
        self.head = Residual(width) if config.projector == "mlp2" else nn.Identity()
        # Far enough from the items for distances to be nearly linear in them.
        self.prototypes_KL = nn.Parameter(4.0 * F.normalize(torch.randn(corners, width), dim=1))
        self.scatter()

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the rewards at the S points."""
        heads_FD = torch.cat([self.down_DL.mT, self.common_D.unsqueeze(0)])
        place_NL, common_N1 = self.project(emb_ND, heads_FD).split([self.down_DL.shape[1], 1], -1)
        place_NL = self.head(place_NL).float()
        point_SL = self.head(self.simplex_SK @ self.prototypes_KL).float()
        squared_NS = place_NL.square().sum(-1, keepdim=True) + point_SL.square().sum(-1)
        squared_NS = squared_NS - 2.0 * place_NL @ point_SL.mT
        # Kept off zero, where the root has no slope.
        nearness_NS = -squared_NS.clamp_min(1e-4).sqrt()
        return common_N1 + nearness_NS - nearness_NS @ self.log_prior_S.softmax(0).unsqueeze(-1)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the negative log marginal likelihood, averaged per comparison, with the penalties."""
        config = self.config
        personal, population = self.marginal_nll(episodes.target)
        rest = sum(part.square().sum() for part in self.head.parameters())
        penalty = config.projector_l2 * (self.ridge(self.down_DL) + rest)
        penalty = penalty + (1 + config.population) * config.common_l2 * self.ridge(self.common_D)
        return Loss(
            personal + config.population * population + penalty,
            {"personal": personal.detach(), "population": population.detach(), "penalty": penalty.detach()},
        )


class PublishedPAL(WeightsModel):
    """r_u = −‖f(e) − f(w_uP)‖ with w_u = softmax(a_u) on the simplex, PAL-A as published (arXiv 2406.08469).

    f is a residual ReLU network; embeddings of another width than its own first pass a linear map. The
    prototypes P, f and one row a_u per seen user are trained together by AdamW on the hinge loss of margins.
    Item features are f(e), F = L.
    """

    def __init__(self, config: PALConfig, dims: Dims) -> None:
        """Draw unit prototypes and N(0, 1) weights."""
        super().__init__(config, dims)
        prototypes, width = config.prototypes, config.width
        self.down = nn.Linear(dims.embedding, width) if dims.embedding != width else nn.Identity()
        self.head = Residual(width)
        self.prototypes_KL = nn.Parameter(F.normalize(torch.randn(prototypes, width), dim=1))
        self.enrol()

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the item's place in the preference space."""
        return self.head(self.down(self.standardise(emb_ND))).float()

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return minus the distance from the user's point, with no variance: a point knows no doubt."""
        point_BL = self.head(user_BZ @ self.prototypes_KL).float()
        return Reward(-torch.linalg.vector_norm(item_BNF - point_BL.unsqueeze(1), dim=-1))

    def cost(self, margin_BP: Tensor) -> Tensor:
        """Return the hinge loss max(0, 1 − margin)."""
        return F.relu(1.0 - margin_BP)

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return the projector with its decay, and prototypes and weights with their own rate."""
        projector = [*self.down.parameters(), *self.head.parameters()]
        rate = self.config.point_rate * recipe.lr
        return [
            {"params": projector, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
            {"params": [self.prototypes_KL, self.logits_UK], "lr": rate, "weight_decay": 0.0},
        ]


class Residual(nn.Module):
    """z + mlp(z), three linear layers of one width with ReLU between them."""

    def __init__(self, width: int) -> None:
        """Start from torch's default layers."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
        )

    def forward(self, place_NL: Tensor) -> Tensor:
        """Return the moved places."""
        return place_NL + self.layers(place_NL)
