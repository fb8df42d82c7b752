"""PAL-B: pluralistic alignment where the prompt decides what is ideal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from raypref.methods.base import Recipe, RewardModel
from raypref.methods.fewshot import pack
from raypref.methods.pal import PUBLISHED
from raypref.methods.simplex import PointsModel, SimplexConfig, WeightsModel
from raypref.types import Dims, Episodes, Loss, Reward

LARGEST_SCALE = 100.0
"""Of the cosine, as published."""


class PALBConfig(SimplexConfig):
    """Pluralistic alignment by prompt: each prototype says for every prompt what is ideal."""

    citation: ClassVar[str] = "PAL, arXiv 2406.08469 (ICLR 2025)"

    type: Literal["pal_b"] = "pal_b"
    recipe: Recipe = Recipe(steps=250, warmup=0.08, users_per_step=128, targets=64, lr=5e-3)
    prototypes: PositiveInt = Field(default=4, description="k, the number of prototypes.")
    points: PositiveInt = Field(
        default=32, description="posterior only: S, points of the simplex; at least the prototypes."
    )
    population: NonNegativeFloat = Field(
        default=0.3, description="posterior only: weight of the loss of a user nothing is known of."
    )
    scale_rate: PositiveFloat = Field(
        default=1000.0, description="adamw only: learning rate of the cosine's scale, times recipe.lr."
    )

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the published sizes and recipe for the published solver."""
        return PUBLISHED if raw.get("solver") == "adamw" else {}

    @property
    def needs_prompts(self) -> bool:
        """It does: what is ideal depends on the prompt."""
        return True

    def build(self, dims: Dims) -> RewardModel:
        """Return an untrained model."""
        return PublishedPALB(self, dims) if self.solver == "adamw" else PALB(self, dims)


class PALB(PointsModel):
    """r_s = b·e + d_s, d_s = exp(a)·cos(Σ_k w_sk g_k(e_prompt), f(e_response)) (PAL, arXiv 2406.08469).

    PAL-B made Bayesian: the w_s are the points of the simplex. A user nothing is known of has the mean of the
    r_s under the prior, which a Bradley–Terry loss of its own fits to everybody. Training maximises the
    marginal likelihood of each user's comparisons, log Σ_s π_s Π_i σ(Δ_is). No user owns a parameter.
    """

    config: PALBConfig

    def __init__(self, config: PALBConfig, dims: Dims) -> None:
        """Draw the networks and the points; start from a zero common reward."""
        super().__init__(config, dims)
        self.common_D = nn.Parameter(torch.zeros(dims.embedding))
        self.ideal = Ideal(dims.embedding, config.width, config.prototypes)
        self.scatter()

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the rewards at the S points."""
        emb_ND = self.standardise(emb_ND)
        common_N1 = (emb_ND @ self.common_D.unsqueeze(-1)).float()
        return common_N1 + self.ideal.nearness(self.ideal(emb_ND), self.simplex_SK)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the negative log marginal likelihood, averaged per comparison, with the penalty."""
        config = self.config
        personal, population = self.marginal_nll(episodes.target)
        penalty = (1 + config.population) * config.common_l2 * self.ridge(self.common_D)
        return Loss(
            personal + config.population * population + penalty,
            {"personal": personal.detach(), "population": population.detach(), "penalty": penalty.detach()},
        )


class PublishedPALB(WeightsModel):
    """r_u = exp(a)·cos(Σ_k w_uk g_k(e_prompt), f(e_response)), PAL-B as published (arXiv 2406.08469).

    f, the g_k, the scale and one row per seen user are trained together by AdamW on the cross-entropy between
    the two responses, −log σ(Δ). Item features are what the cosine needs, F = k + k(k+1)/2.
    """

    config: PALBConfig

    def __init__(self, config: PALBConfig, dims: Dims) -> None:
        """Draw the networks and N(0, 1) weights."""
        super().__init__(config, dims)
        self.ideal = Ideal(dims.embedding, config.width, config.prototypes)
        self.enrol()

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the products of the item and the prototypes, and of these with each other."""
        return self.ideal(self.standardise(emb_ND))

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return the scaled cosine, with no variance: a point knows no doubt."""
        return Reward(self.ideal.nearness(item_BNF, user_BZ.unsqueeze(1)).squeeze(-1))

    def cost(self, margin_BP: Tensor) -> Tensor:
        """Return the cross-entropy −log σ(margin)."""
        return F.softplus(-margin_BP)

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return the networks with their decay, the users' weights and the scale with rates of their own."""
        config, networks = self.config, [*self.ideal.response.parameters(), *self.ideal.prompts.parameters()]
        return [
            {"params": networks, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
            {"params": [self.logits_UK], "lr": config.point_rate * recipe.lr, "weight_decay": 0.0},
            {"params": [self.ideal.log_scale], "lr": config.scale_rate * recipe.lr, "weight_decay": 0.0},
        ]


class Ideal(nn.Module):
    """What is ideal to whom, prompt by prompt, and how near to it a response is.

    An embedding is that of the response followed by that of the prompt. The ideal Σ_k w_k g_k is linear in w,
    so the products g_k·f/‖f‖ and g_j·g_k are all that a cosine with any ideal needs of an item.
    """

    def __init__(self, dim: int, width: int, prototypes: int) -> None:
        """Start from torch's default layers and a scale of 1/0.07.

        Args:
            dim: width of an embedding, response and prompt.
            width: L, width of the preference space.
            prototypes: K.
        """
        super().__init__()
        self.response = projector(dim // 2, width)
        self.prompts = nn.ModuleList(projector(dim // 2, width) for _ in range(prototypes))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1.0 / 0.07)))

    def forward(self, emb_ND: Tensor) -> Tensor:
        """Return the K products with the response and the K(K+1)/2 of prototypes with each other."""
        response_ND, prompt_ND = emb_ND.chunk(2, -1)
        place_NL = F.normalize(self.response(response_ND).float(), dim=-1)
        prototype_NKL = torch.stack([network(prompt_ND).float() for network in self.prompts], -2)
        near_NK = (prototype_NKL @ place_NL.unsqueeze(-1)).squeeze(-1)
        return torch.cat([near_NK, pack(prototype_NKL @ prototype_NKL.mT)], -1)

    def nearness(self, item_NF: Tensor, weights_SK: Tensor) -> Tensor:
        """Return nearness_NS: of each item to the ideal that each row of weights makes for its prompt."""
        prototypes = weights_SK.shape[-1]
        outer_SKK = weights_SK.unsqueeze(-1) * weights_SK.unsqueeze(-2)
        # A packed matrix holds one of its two equal halves.
        outer_SKK = 2.0 * outer_SKK - torch.diag_embed(weights_SK.square())
        squared_NS = item_NF[..., prototypes:] @ pack(outer_SKK).mT
        cosine_NS = item_NF[..., :prototypes] @ weights_SK.mT * squared_NS.clamp_min(1e-8).rsqrt()
        return self.log_scale.clamp_max(math.log(LARGEST_SCALE)).exp() * cosine_NS


def projector(dim: int, width: int) -> nn.Sequential:
    """Return three linear layers with GELU between them, as published."""
    return nn.Sequential(
        nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
    )
