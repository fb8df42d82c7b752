"""Users on the simplex of a few prototypes: what the variants of PAL share (arXiv 2406.08469)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, RewardModel
from raypref.methods.linear import LinearRewardModel
from raypref.types import Dims, Episodes, Landscape, Loss, Pairs, Reward

PUBLISHED_BATCH = 4
SUM_SLACK = 1e-3
"""How far the sum of somebody's shares may be from 1, for those who write them by hand."""
"""Comparisons in a step of the authors'; sets how many steps an epoch over a new user's has."""


class SimplexConfig(MethodConfig):
    """Base of the configurations of PAL's variants."""

    solver: Literal["posterior", "adamw"] = Field(
        default="posterior",
        description="posterior: a user is a distribution over points of the simplex, adapted by Bayes; "
        "adamw: as published, one point per user fitted by AdamW, no uncertainty.",
    )
    prototypes: PositiveInt = Field(default=8, description="k, the number of prototypes.")
    width: PositiveInt = Field(default=16, description="L, width of the preference space.")
    points: PositiveInt = Field(
        default=96, description="posterior only: S, points of the simplex; at least the prototypes."
    )
    concentration: PositiveFloat = Field(
        default=0.3, description="posterior only: Dirichlet concentration of the points beside the corners."
    )
    common_l2: NonNegativeFloat = Field(
        default=0.02,
        description="posterior only: penalty on the squared norm of the common reward, growing with D from "
        "384, for each loss it stands in.",
    )
    population: NonNegativeFloat = Field(
        default=10.0,
        description="posterior only: weight of the loss of a user nothing is known of.",
    )
    point_rate: PositiveFloat = Field(
        default=50.0,
        description="adamw only: learning rate of prototypes and seen users' weights, times recipe.lr.",
    )
    adapt_lr: PositiveFloat = Field(
        default=5e-3, description="adamw only: learning rate of a new user's weights."
    )
    adapt_epochs: PositiveInt = Field(
        default=20, description="adamw only: epochs over a new user's comparisons."
    )

    @model_validator(mode="after")
    def _a_point_for_each_corner(self) -> SimplexConfig:
        if self.points < self.prototypes:
            raise ValueError("points must be at least prototypes")
        return self


def on_simplex(place_BK: Tensor) -> Tensor:
    """Return places of the simplex as they are.

    Raises:
        ValueError: a weight is negative, or they do not sum to 1.
    """
    if bool((place_BK < 0).any()) or bool(((place_BK.sum(-1) - 1).abs() > SUM_SLACK).any()):
        raise ValueError("weights here are shares: none is negative, and they sum to 1")
    return place_BK


class MixtureModel(LinearRewardModel):
    """r_u = Σ_s c_us r_s: a user is a distribution c_u over S rewards that may be theirs, with Bayes' rule.

    Evidence is the log-likelihood of a comparison under each reward, E = S, and adds up, so Bayes' rule is
    exact and users update in any order by addition alone: c_us ∝ π_s exp(Σ_i log σ(Δ_is)) from a prior π.
    Item features are the rewards r_s and the user vector is c_u, F = Z = S. Variance is that of the reward
    over c_u.
    """

    log_prior_S: Tensor

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return the chance of each reward: Bayes' rule."""
        loglik_BS = (mask_BP.unsqueeze(1) @ evidence_BPE).squeeze(1)
        return torch.softmax(self.log_prior_S + loglik_BS, -1)

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return mean and variance of the item's reward over c_u."""
        chance_BS1 = user_BZ.unsqueeze(-1)
        mean_BN1 = item_BNF @ chance_BS1
        var_BN1 = (item_BNF - mean_BN1).square() @ chance_BS1
        return Reward(mean_BN1.squeeze(-1), var_BN1.squeeze(-1))


class PointsModel(MixtureModel):
    """A user is a distribution over S fixed points of the simplex, each with its reward.

    The points are the corners, where a user has one prototype alone, and Dirichlet draws; their prior is
    learned.
    """

    simplex_SK: Tensor

    def __init__(self, config: SimplexConfig, dims: Dims) -> None:
        """Keep the configuration; `scatter` makes the points."""
        super().__init__(dims)
        self.config = config

    def scatter(self) -> None:
        """Draw the points; the prior starts flat."""
        config = self.config
        corners = config.prototypes
        self.log_prior_S = nn.Parameter(torch.zeros(config.points))
        dirichlet = torch.distributions.Dirichlet(torch.full((corners,), config.concentration))
        draws_SK = dirichlet.sample(torch.Size([config.points - corners]))
        self.register_buffer("simplex_SK", torch.cat([torch.eye(corners), draws_SK]))

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return the log-likelihood of the comparison at the S points."""
        return F.logsigmoid(self.item(chosen_ND) - self.item(rejected_ND))

    def marginal_nll(self, target: Pairs) -> tuple[Tensor, Tensor]:
        """Return the negative log marginal likelihood of the users, and that of a user nothing is known of.

        −log Σ_s π_s Π_i σ(Δ_is) and −Σ_i log σ(Σ_s π_s Δ_is), both per comparison.
        """
        margin_BPS = self.item(target.chosen_BPD) - self.item(target.rejected_BPD)
        log_prior_S = torch.log_softmax(self.log_prior_S, 0)
        loglik_BS = (F.logsigmoid(margin_BPS) * target.mask_BP.unsqueeze(-1)).sum(1)
        count = target.mask_BP.sum()
        personal = -torch.logsumexp(log_prior_S + loglik_BS, 1).sum() / count
        common_BP = margin_BPS @ log_prior_S.exp()
        population = (F.softplus(-common_BP) * target.mask_BP).sum() / count
        return personal, population

    def landscape(self, user_BZ: Tensor) -> Landscape:
        """Return the users' weights on the simplex; the prototypes are its corners."""
        mean_BK = user_BZ @ self.simplex_SK
        var_BK = user_BZ @ self.simplex_SK.square() - mean_BK.square()
        corners_KK = torch.eye(mean_BK.shape[-1]).to(mean_BK)
        return Landscape(mean_BK, var_BK.clamp_min(0.0), corners_KK)

    def steer(self, place_BL: Tensor) -> Tensor:
        """Return users who have one prototype alone, with these chances."""
        points = len(self.simplex_SK) - place_BL.shape[-1]
        return torch.cat([on_simplex(place_BL), place_BL.new_zeros(len(place_BL), points)], -1)


class WeightsModel(RewardModel):
    """A user is one point w_u = softmax(a_u) of the simplex, as published: one row a_u per seen user.

    A new user's a alone is fitted by AdamW for as many steps as the authors' batches of four would take; each
    step sees all comparisons, so their order does not matter. It starts from the mean of the seen users'
    weights, which is also what a user without comparisons has: a random start would have to be unlearned.
    Evidence is both items' features, E = 2F, and the user vector is w_u, Z = k.
    """

    uncertain = False
    user_rows = ("logits_UK",)

    center_K: Tensor

    def __init__(self, config: SimplexConfig, dims: Dims) -> None:
        """Keep the configuration; `enrol` makes the users."""
        super().__init__(dims)
        self.config = config

    def enrol(self) -> None:
        """Draw the seen users' logits from N(0, 1)."""
        prototypes = self.config.prototypes
        self.logits_UK = nn.Parameter(torch.randn(self.dims.users, prototypes))
        self.register_buffer("center_K", torch.full((prototypes,), 1.0 / prototypes))

    @abstractmethod
    def cost(self, margin_BP: Tensor) -> Tensor:
        """Return what the method is fitted by, for each margin."""

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return both items' features."""
        return torch.cat([self.item(chosen_ND), self.item(rejected_ND)], -1)

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return weights after `adapt_epochs` of AdamW on the cost of the comparisons."""
        batches_B1 = (torch.count_nonzero(mask_BP, 1).unsqueeze(-1) / PUBLISHED_BATCH).ceil()
        steps_B1 = self.config.adapt_epochs * batches_B1.long()
        chosen_BPF, rejected_BPF = evidence_BPE.detach().chunk(2, -1)
        with torch.enable_grad():
            logits_BK = self.center_K.log().expand(len(evidence_BPE), -1).clone().requires_grad_()
            done_BK = logits_BK.detach().clone()
            # The optimiser divides by its own gradient, so a sum over users leaves each user's path alone.
            optimiser = torch.optim.AdamW([logits_BK], lr=self.config.adapt_lr)
            for step in range(int(steps_B1.max()) if len(steps_B1) else 0):
                margin_BP = self.margin(chosen_BPF, rejected_BPF, torch.softmax(logits_BK, -1)).mean_BN
                loss = (self.cost(margin_BP) * mask_BP).sum()
                (logits_BK.grad,) = torch.autograd.grad(loss, [logits_BK])
                optimiser.step()
                done_BK = torch.where(step < steps_B1, logits_BK.detach(), done_BK)
        return torch.softmax(done_BK, -1)

    def margin(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return the difference of the rewards, with no variance: a point knows no doubt."""
        return Reward(self.reward(chosen_BNF, user_BZ).mean_BN - self.reward(rejected_BNF, user_BZ).mean_BN)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the mean cost over comparisons."""
        target = episodes.target
        weights_BK = torch.softmax(self.logits_UK[episodes.user_B], -1)
        cost_BP = self.cost(self(target, weights_BK).mean_BN) * target.mask_BP
        cost = cost_BP.sum() / target.mask_BP.sum()
        return Loss(cost, {"cost": cost.detach()})

    @torch.no_grad()
    def settle(self, seen: Iterable[Pairs]) -> None:
        """Set the weights of a user nothing is known of."""
        self.center_K.copy_(torch.softmax(self.logits_UK, -1).mean(0))

    def landscape(self, user_BZ: Tensor) -> Landscape:
        """Return the users' weights on the simplex; the prototypes are its corners."""
        return Landscape(user_BZ, None, torch.eye(user_BZ.shape[-1]).to(user_BZ))

    def steer(self, place_BL: Tensor) -> Tensor:
        """Return users with these weights."""
        return on_simplex(place_BL)
