"""LoRe: low-rank rewards; a user is a weight for each of K shared basis rewards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, RewardModel, preference_loss
from raypref.methods.fewshot import (
    gaussian_posterior,
    leave_one_out,
    log_likelihood,
    mixture_posterior,
    pack,
    unpack,
    variational_nll,
)
from raypref.methods.linear import LinearRewardModel
from raypref.types import Dims, Episodes, Landscape, Loss, Pairs, Reward

PUBLISHED_RECIPE = {
    "steps": 1000,
    "schedule": "constant",
    "warmup": 0.0,
    "users_per_step": 2000,
    "lr": 0.5,
    "clip": 1e6,
}
"""What the authors train with: full-batch Adam, rate 0.5."""


class LoReConfig(MethodConfig):
    """Low-rank reward modelling: shared basis rewards, a few weights per user."""

    citation: ClassVar[str] = "LoRe, arXiv 2504.14439 (COLM 2025)"

    type: Literal["lore"] = "lore"
    recipe: Recipe = Recipe(steps=250, warmup=0.08, users_per_step=128, targets=64, lr=1e-2)
    solver: Literal["posterior", "adam"] = Field(
        default="posterior",
        description="posterior: Gaussian weights around a common reward, adapted by Bayes under the prior of "
        "the seen users; adam: as published, simplex weights adapted by 500 Adam steps, no uncertainty.",
    )
    bases: PositiveInt = Field(default=8, description="K, the number of basis rewards.")
    basis_l2: float = Field(
        default=0.01, ge=0, description="Penalty on the squared norm of the bases, growing with D from 384."
    )
    common_l2: float = Field(
        default=0.02,
        ge=0,
        description="Penalty on its squared norm, growing with D from 384, for each loss the common reward "
        "stands in.",
    )
    population: float = Field(
        default=10.0,
        ge=0,
        description="Weight of the common reward's own loss: it serves users nothing is known of.",
    )
    iterations: int = Field(
        default=8,
        ge=2,
        description="Rounds of the variational solver for the prior; half as many where a curvature or a "
        "gradient is all that is wanted of it.",
    )
    particles: PositiveInt = Field(default=384, description="S, seen users whose weights make the prior.")
    shrink_rounds: PositiveInt = Field(
        default=1, description="Leave-one-out rounds that shrink the prior's weights."
    )
    kernel: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Spread of each particle, as a share of the prior's standard deviation.",
    )
    logit_scale: PositiveFloat = Field(default=0.03, description="adam only: logits are this times δᵀVw.")
    adapt_lr: PositiveFloat = Field(
        default=0.1, description="adam only: learning rate of a new user's weights."
    )
    adapt_steps: PositiveInt = Field(default=500, description="adam only: steps of a new user's weights.")

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the published recipe for the published solver."""
        return {"recipe": PUBLISHED_RECIPE} if raw.get("solver") == "adam" else {}

    def build(self, dims: Dims) -> RewardModel:
        """Return an untrained model."""
        return PublishedLoRe(self, dims) if self.solver == "adam" else LoRe(self, dims)


class LoRe(LinearRewardModel):
    """r_u(x, y) = b·e + w_uᵀ Vᵀe, w_u with a learned prior (LoRe, arXiv 2504.14439, made Bayesian).

    Training is variational EM: each step solves for N(m_u, S_u) of every user in it under a standard-normal
    prior, then moves b and V along the gradient of the same bound (Jaakkola and Jordan 2000). No user owns a
    parameter, so any number of users trains in any order.

    Inference is Bayes under the prior learned from the seen users: S of their posterior means, shrunk
    leave-one-out and centred so that a user nothing is known of has the common reward, each the centre of a
    small Gaussian. The user vector is the posterior's mean and covariance. Evidence and item features are the
    common reward and the K basis rewards, so Z = K + K(K+1)/2.
    """

    heads = ("common_D", "bases_DK")

    weights_SK: Tensor
    kernel_KK: Tensor

    def __init__(self, config: LoReConfig, dims: Dims) -> None:
        """Start from a zero common reward and small random bases."""
        super().__init__(dims)
        self.config = config
        self.common_D = nn.Parameter(torch.zeros(dims.embedding))
        spread = 0.3 / math.sqrt(dims.embedding)
        self.bases_DK = nn.Parameter(spread * torch.randn(dims.embedding, config.bases))
        particles = min(config.particles, dims.users)
        self.register_buffer("weights_SK", torch.zeros(particles, config.bases))
        self.register_buffer("kernel_KK", torch.eye(config.bases))

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the common reward and the K basis rewards, F = 1 + K."""
        return self.project(emb_ND, self._heads())

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return the differences of the item features, E = 1 + K."""
        return self.project_difference(chosen_ND, rejected_ND, self._heads())

    def _heads(self) -> Tensor:
        return torch.cat([self.common_D.unsqueeze(0), self.bases_DK.mT])

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return mean and packed covariance of the weights."""
        mean_BK, cov_BKK = mixture_posterior(
            evidence_BPE[..., 0],
            evidence_BPE[..., 1:],
            mask_BP,
            self.weights_SK,
            self.kernel_KK,
            self.config.iterations // 2,
        )
        return torch.cat([mean_BK, pack(cov_BKK)], 1)

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return c + f·mean, and fᵀ cov f."""
        bases = self.config.bases
        feature_BNK = item_BNF[..., 1:]
        mean_BN = item_BNF[..., 0] + (feature_BNK @ user_BZ[:, :bases].unsqueeze(-1)).squeeze(-1)
        cov_BKK = unpack(user_BZ[:, bases:], bases)
        return Reward(mean_BN, ((feature_BNK @ cov_BKK) * feature_BNK).sum(-1).clamp_min(0.0))

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the variational bound, averaged per comparison, with the penalties."""
        config, mask_BP = self.config, episodes.target.mask_BP
        evidence_BPE = self.encode(episodes.target)
        common_BP, feature_BPK = evidence_BPE[..., 0], evidence_BPE[..., 1:]
        with torch.no_grad():
            mean_BK, cov_BKK = gaussian_posterior(common_BP, feature_BPK, mask_BP, config.iterations // 2)
        count = mask_BP.sum()
        personal = variational_nll(common_BP, feature_BPK, mask_BP, mean_BK, cov_BKK) / count
        population = (F.softplus(-common_BP) * mask_BP).sum() / count
        penalty = config.basis_l2 * self.ridge(self.bases_DK)
        penalty = penalty + (1 + config.population) * config.common_l2 * self.ridge(self.common_D)
        return Loss(
            personal + config.population * population + penalty,
            {"personal": personal.detach(), "population": population.detach(), "penalty": penalty.detach()},
        )

    def landscape(self, user_BZ: Tensor) -> Landscape:
        """Return the users' weights; the bases are the axes."""
        bases = self.config.bases
        cov_BKK = unpack(user_BZ[:, bases:], bases)
        return Landscape(user_BZ[:, :bases], cov_BKK.diagonal(dim1=-2, dim2=-1).clamp_min(0.0))

    def steer(self, place_BL: Tensor) -> Tensor:
        """Return users with these weights."""
        bases = self.config.bases
        return torch.cat([place_BL, place_BL.new_zeros(len(place_BL), bases * (bases + 1) // 2)], 1)

    @torch.no_grad()
    def settle(self, seen: Iterable[Pairs]) -> None:
        """Make the prior from the first S seen users: their posterior means, shrunk leave-one-out."""
        wanted, kept = len(self.weights_SK), []
        for pairs in seen:
            evidence_BPE = self.encode(pairs)
            kept.append((evidence_BPE, pairs.mask_BP))
            wanted -= len(evidence_BPE)
            if wanted <= 0:
                break
        if not kept:
            return
        width = max(mask_BP.shape[1] for _, mask_BP in kept)
        evidence_SPE = torch.cat([F.pad(part, (0, 0, 0, width - part.shape[1])) for part, _ in kept])
        mask_SP = torch.cat([F.pad(mask_BP, (0, width - mask_BP.shape[1])) for _, mask_BP in kept])
        evidence_SPE, mask_SP = evidence_SPE[: len(self.weights_SK)], mask_SP[: len(self.weights_SK)]
        common_SP, feature_SPK = evidence_SPE[..., 0], evidence_SPE[..., 1:]
        mean_SK, _ = gaussian_posterior(common_SP, feature_SPK, mask_SP, self.config.iterations)
        if len(mean_SK) > 1:
            loglik_SS = log_likelihood(common_SP, feature_SPK, mask_SP, mean_SK)
            mean_SK = leave_one_out(loglik_SS, mean_SK, self.config.shrink_rounds)
        mean_SK = mean_SK - mean_SK.mean(0)
        cov_KK = mean_SK.mT @ mean_SK / len(mean_SK) + 1e-4 * torch.eye(
            mean_SK.shape[1], device=mean_SK.device
        )
        # Centres move in by as much as the kernel spreads out, which keeps the prior's covariance.
        self.kernel_KK.copy_(self.config.kernel**2 * cov_KK)
        centers_SK = math.sqrt(1.0 - self.config.kernel**2) * mean_SK
        # Fewer users than particles: repeat them all equally often, as far as it goes.
        repeats = -(-len(self.weights_SK) // len(centers_SK))
        self.weights_SK.copy_(centers_SK.repeat(repeats, 1)[: len(self.weights_SK)])


class PublishedLoRe(LinearRewardModel):
    """r_u(x, y) = w_uᵀ Vᵀe with w_u = softmax(a_u) on the simplex, as published (arXiv 2504.14439).

    V and one row a_u per seen user are trained together by Adam; a new user's a is fitted by Adam from a
    fixed draw of N(0, 1). A user without comparisons gets the mean of the seen users' weights.
    """

    uncertain = False
    user_rows = ("logits_UK",)

    start_K: Tensor
    center_K: Tensor

    def __init__(self, config: LoReConfig, dims: Dims) -> None:
        """Draw the bases and all weights from N(0, 1)."""
        super().__init__(dims)
        self.config = config
        self.bases_DK = nn.Parameter(torch.randn(dims.embedding, config.bases))
        self.logits_UK = nn.Parameter(torch.randn(dims.users, config.bases))
        self.register_buffer("start_K", torch.randn(config.bases))
        self.register_buffer("center_K", torch.full((config.bases,), 1.0 / config.bases))

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the K basis rewards."""
        return self.config.logit_scale * self.project(emb_ND, self.bases_DK.mT)

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return the K basis differences."""
        return self.item(chosen_ND) - self.item(rejected_ND)

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return weights after `adapt_steps` Adam steps on the negative log-likelihood of the comparisons."""
        with torch.enable_grad():
            logits_BK = self.start_K.expand(len(evidence_BPE), -1).clone().requires_grad_()
            # The optimiser divides by its own gradient, so a sum over users leaves each user's path alone.
            optimiser = torch.optim.Adam([logits_BK], lr=self.config.adapt_lr)
            evidence_BPE = evidence_BPE.detach()
            for _ in range(self.config.adapt_steps):
                weights_BK1 = torch.softmax(logits_BK, -1).unsqueeze(-1)
                margin_BP = (evidence_BPE @ weights_BK1).squeeze(-1)
                loss = (F.softplus(-margin_BP) * mask_BP).sum()
                (logits_BK.grad,) = torch.autograd.grad(loss, [logits_BK])
                optimiser.step()
        known_B1 = (mask_BP.sum(1, keepdim=True) > 0).float()
        return known_B1 * torch.softmax(logits_BK.detach(), -1) + (1 - known_B1) * self.center_K

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return f·w, with no variance: a point estimate knows no doubt."""
        return Reward((item_BNF @ user_BZ.unsqueeze(-1)).squeeze(-1))

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the mean over users of each user's mean negative log-likelihood."""
        weights_BK = torch.softmax(self.logits_UK[episodes.user_B], -1)
        nll = preference_loss(self(episodes.target, weights_BK), episodes.target.mask_BP)
        return Loss(nll, {"nll": nll.detach()})

    @torch.no_grad()
    def settle(self, seen: Iterable[Pairs]) -> None:
        """Set the weights of a user nothing is known of."""
        self.center_K.copy_(torch.softmax(self.logits_UK, -1).mean(0))
