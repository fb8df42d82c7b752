"""PReF: a reward is a user's weights times an item's factors, the weights free in sign and size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, RewardModel
from raypref.methods.factors import Factors, factorise
from raypref.methods.fewshot import expected_gain, gaussian_posterior, laplace_covariance, pack, unpack
from raypref.methods.linear import LinearRewardModel
from raypref.types import Dims, Episodes, Landscape, Loss, Pairs, Reward

PUBLISHED_RECIPE = {"steps": 500, "warmup": 0.0}
"""The authors' 500 steps; their SGD at 1e-3 tunes a language model, AdamW fits the linear factors here."""


class PReFConfig(MethodConfig):
    """Preference factorisation: shared factors of items, and free weights of each user for them."""

    citation: ClassVar[str] = "PReF, arXiv 2503.06358 (COLM 2025)"

    type: Literal["pref"] = "pref"
    recipe: Recipe = Recipe(steps=250, warmup=0.08, users_per_step=128, targets=64, lr=3e-2)
    solver: Literal["posterior", "sgd"] = Field(
        default="posterior",
        description="posterior: weights adapted by Bayes under a Gaussian prior, with uncertainty; sgd: as "
        "published, weights adapted by 1,000 SGD steps without regulariser or uncertainty.",
    )
    bases: PositiveInt = Field(default=5, description="K, the number of factors.")
    difference_l2: NonNegativeFloat = Field(
        default=0.02, description="Penalty on the mean norm of the factors' differences."
    )
    least_shared: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of comparisons on pairs that several users judged from which on an SVD of them "
        "starts the training; below it the start is random.",
    )
    row_rate: PositiveFloat = Field(
        default=3.0, description="Learning rate of the seen users' weights, times recipe.lr."
    )
    prior: Literal["fitted", "zero"] = Field(
        default="fitted",
        description="posterior only: centre of the prior. fitted: the population's weights; zero: none, so "
        "that a user with every comparison swapped is exactly the opposite user.",
    )
    weight_l2: NonNegativeFloat = Field(
        default=0.5,
        description="posterior only: penalty on the squared norm of a seen user's weights around the "
        "population's; 0.5 is a standard-normal prior.",
    )
    basis_l2: NonNegativeFloat = Field(
        default=0.01,
        description="posterior only: penalty on the squared norm of the factors' heads, growing with D from "
        "384.",
    )
    common_l2: NonNegativeFloat = Field(
        default=0.02,
        description="posterior only: penalty on the squared norm of the population's reward, growing with D "
        "from 384, for each loss it stands in.",
    )
    population: NonNegativeFloat = Field(
        default=10.0,
        description="posterior only: weight of the population's own loss, for users nothing is known of.",
    )
    iterations: PositiveInt = Field(
        default=8, description="posterior only: rounds of the variational solver."
    )
    adapt_lr: PositiveFloat = Field(
        default=0.01, description="sgd only: learning rate of a new user's weights."
    )
    adapt_steps: PositiveInt = Field(default=1000, description="sgd only: steps of a new user's weights.")

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the published recipe for the published solver."""
        return {"recipe": PUBLISHED_RECIPE} if raw.get("solver") == "sgd" else {}

    def build(self, dims: Dims) -> RewardModel:
        """Return an untrained model."""
        return PublishedPReF(self, dims) if self.solver == "sgd" else PReF(self, dims)


class FactorModel(LinearRewardModel):
    """What both solvers share: K linear factors, their start, and which comparison to ask for next."""

    user_rows = ("rows_UK",)

    def __init__(self, config: PReFConfig, dims: Dims, spread: float) -> None:
        """Draw the factors from N(0, spread²/D)."""
        super().__init__(dims)
        self.config = config
        spread = spread * dims.embedding**-0.5
        self.bases_DK = nn.Parameter(spread * torch.randn(dims.embedding, config.bases))

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the K factors."""
        return self.project(emb_ND, self.bases_DK.mT)

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return the K differences of the factors."""
        return self.project_difference(chosen_ND, rejected_ND, self.bases_DK.mT)

    @abstractmethod
    def posterior(self, evidence_BPE: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_BK and cov_BKK of each user's weights."""

    @abstractmethod
    def start_from(self, factors: Factors) -> None:
        """Set the seen users' weights to those of a factorisation."""

    @torch.no_grad()
    def prime(self, seen: Iterable[Episodes]) -> None:
        """Start from the SVD of who preferred what, where enough comparisons are of shared pairs."""
        config = self.config
        factors = factorise(seen, self.dims.users, config.bases, config.least_shared)
        if factors is not None:
            self.bases_DK.copy_(factors.bases(seen, self.standardise))
            self.start_from(factors)

    def next_comparison(self, evidence_BPE: Tensor, mask_BP: Tensor, candidate_BNE: Tensor) -> Tensor:
        """Return index_B: the candidate whose answer would say most about each user.

        Args:
            evidence_BPE: what the user has answered so far; P may be 0.
            mask_BP: weight of each answer, 0 where padded.
            candidate_BNE: evidence of the comparisons that may be asked for, in either order.
        """
        return expected_gain(candidate_BNE, *self.posterior(evidence_BPE, mask_BP)).argmax(1)

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return users' weights with their own rate and no decay, and the rest."""
        rows = [parameter for name, parameter in self.named_parameters() if name == "rows_UK"]
        rest = [parameter for name, parameter in self.named_parameters() if name != "rows_UK"]
        return [
            {"params": rest, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
            {"params": rows, "lr": self.config.row_rate * recipe.lr, "weight_decay": 0.0},
        ]


class PReF(FactorModel):
    """r_u(x, y) = λ_uᵀφ(x, y), φ = Aᵀe, λ_u with a Gaussian prior (PReF, arXiv 2503.06358, made Bayesian).

    A seen user has λ_u = λ₀ + row_u. Rows, λ₀ and A are trained together, the rows under a standard-normal
    prior; λ₀ has a Bradley–Terry loss of its own, since it serves users nothing is known of.

    Inference is Bayes under the prior N(λ₀, Σ), Σ the covariance of the seen users' rows, by variational
    logistic regression. Evidence and item features are the K factors; the user vector is the posterior's
    mean and covariance, Z = K + K(K+1)/2.
    """

    prior_K: Tensor
    root_KK: Tensor

    def __init__(self, config: PReFConfig, dims: Dims) -> None:
        """Start from random factors and weights."""
        super().__init__(config, dims, spread=0.3)
        self.center_K = nn.Parameter(torch.randn(config.bases))
        self.rows_UK = nn.Parameter(0.1 * torch.randn(dims.users, config.bases))
        self.register_buffer("prior_K", torch.zeros(config.bases))
        self.register_buffer("root_KK", torch.eye(config.bases))

    def posterior(self, evidence_BPE: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_BK and cov_BKK of each user's weights under the prior."""
        whitened_BPK = evidence_BPE @ self.root_KK
        mean_BK, cov_BKK = gaussian_posterior(
            evidence_BPE @ self.prior_K, whitened_BPK, mask_BP, self.config.iterations
        )
        return self.prior_K + mean_BK @ self.root_KK.mT, self.root_KK @ cov_BKK @ self.root_KK.mT

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return mean and packed covariance of the weights."""
        mean_BK, cov_BKK = self.posterior(evidence_BPE, mask_BP)
        return torch.cat([mean_BK, pack(cov_BKK)], 1)

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return f·mean, and fᵀ cov f."""
        bases = self.config.bases
        mean_BN = (item_BNF @ user_BZ[:, :bases].unsqueeze(-1)).squeeze(-1)
        cov_BKK = unpack(user_BZ[:, bases:], bases)
        return Reward(mean_BN, ((item_BNF @ cov_BKK) * item_BNF).sum(-1).clamp_min(0.0))

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the personal and the population's loss, averaged per comparison, with the penalties."""
        config, mask_BP = self.config, episodes.target.mask_BP
        delta_BPK, row_BK = self.encode(episodes.target), self.rows_UK[episodes.user_B]
        common_BP = delta_BPK @ self.center_K
        margin_BP = common_BP + (delta_BPK @ row_BK.unsqueeze(-1)).squeeze(-1)
        count = mask_BP.sum()
        personal = (F.softplus(-margin_BP) * mask_BP).sum() / count
        population = (F.softplus(-common_BP) * mask_BP).sum() / count
        penalty = config.difference_l2 * (delta_BPK.norm(dim=-1) * mask_BP).sum() / count
        penalty = penalty + config.weight_l2 * row_BK.square().sum() / count
        penalty = penalty + config.basis_l2 * self.ridge(self.bases_DK)
        common = self.ridge(self.bases_DK @ self.center_K)
        penalty = penalty + (1 + config.population) * config.common_l2 * common
        return Loss(
            personal + config.population * population + penalty,
            {"personal": personal.detach(), "population": population.detach(), "penalty": penalty.detach()},
        )

    def start_from(self, factors: Factors) -> None:
        """Centre the weights, so that a user without judgements starts at the population's."""
        self.center_K.copy_(factors.weights_UK[factors.known_U].mean(0))
        self.rows_UK.copy_((factors.weights_UK - self.center_K) * factors.known_U.unsqueeze(-1))

    @torch.no_grad()
    def settle(self, seen: Iterable[Pairs]) -> None:
        """Make the prior from the seen users' weights."""
        center_K = self.center_K if self.config.prior == "fitted" else torch.zeros_like(self.center_K)
        away_UK = self.rows_UK - self.rows_UK.mean(0) + self.center_K - center_K
        floor_KK = 1e-4 * torch.eye(len(center_K), device=center_K.device)
        self.prior_K.copy_(center_K)
        self.root_KK.copy_(torch.linalg.cholesky(away_UK.mT @ away_UK / max(1, len(away_UK)) + floor_KK))

    def landscape(self, user_BZ: Tensor) -> Landscape:
        """Return the users' weights; the factors are the axes."""
        bases = self.config.bases
        cov_BKK = unpack(user_BZ[:, bases:], bases)
        return Landscape(user_BZ[:, :bases], cov_BKK.diagonal(dim1=-2, dim2=-1).clamp_min(0.0))

    def steer(self, place_BL: Tensor) -> Tensor:
        """Return users with these weights."""
        bases = self.config.bases
        return torch.cat([place_BL, place_BL.new_zeros(len(place_BL), bases * (bases + 1) // 2)], 1)


class PublishedPReF(FactorModel):
    """r_u(x, y) = λ_uᵀφ(x, y), λ_u a point estimate, as published (arXiv 2503.06358).

    φ = Aᵀe and one row λ_u per seen user are trained together; a new user's λ is logistic regression by SGD
    from a fixed draw of N(0, I), without a regulariser. A user without comparisons gets the mean of the seen
    users' weights. Not as published: φ is linear on frozen embeddings, trained by AdamW in mini-batches.
    """

    uncertain = False

    start_K: Tensor
    center_K: Tensor

    def __init__(self, config: PReFConfig, dims: Dims) -> None:
        """Draw factors of unit scale, and all weights from N(0, 1)."""
        super().__init__(config, dims, spread=1.0)
        self.rows_UK = nn.Parameter(torch.randn(dims.users, config.bases))
        self.register_buffer("start_K", torch.randn(config.bases))
        self.register_buffer("center_K", torch.zeros(config.bases))

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return weights after `adapt_steps` SGD steps on each user's mean negative log-likelihood."""
        weights_BK1 = self.start_K.expand(len(evidence_BPE), -1).unsqueeze(-1)
        count_B1 = mask_BP.sum(1, keepdim=True)
        share_BP1 = (mask_BP / count_B1.clamp_min(torch.finfo(mask_BP.dtype).tiny)).unsqueeze(-1)
        for _ in range(self.config.adapt_steps):
            pull_BP1 = torch.sigmoid(-(evidence_BPE @ weights_BK1)) * share_BP1
            weights_BK1 = weights_BK1 + self.config.adapt_lr * (evidence_BPE.mT @ pull_BP1)
        return torch.where(count_B1 > 0, weights_BK1.squeeze(-1), self.center_K)

    def posterior(self, evidence_BPE: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point estimate, and the inverse of the information in the user's comparisons."""
        weights_BK = self.infer(evidence_BPE, mask_BP)
        return weights_BK, laplace_covariance(evidence_BPE, mask_BP, weights_BK)

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return f·λ, without a variance."""
        return Reward((item_BNF @ user_BZ.unsqueeze(-1)).squeeze(-1))

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the mean negative log-likelihood of a comparison, and the penalty."""
        mask_BP, delta_BPK = episodes.target.mask_BP, self.encode(episodes.target)
        margin_BP = (delta_BPK @ self.rows_UK[episodes.user_B].unsqueeze(-1)).squeeze(-1)
        count = mask_BP.sum()
        nll = (F.softplus(-margin_BP) * mask_BP).sum() / count
        penalty = self.config.difference_l2 * (delta_BPK.norm(dim=-1) * mask_BP).sum() / count
        return Loss(nll + penalty, {"nll": nll.detach(), "penalty": penalty.detach()})

    def start_from(self, factors: Factors) -> None:
        """Take the weights; a user without judgements starts at their mean."""
        mean_K = factors.weights_UK[factors.known_U].mean(0)
        self.rows_UK.copy_(torch.where(factors.known_U.unsqueeze(-1), factors.weights_UK, mean_K))

    @torch.no_grad()
    def settle(self, seen: Iterable[Pairs]) -> None:
        """Set the weights of a user nothing is known of."""
        self.center_K.copy_(self.rows_UK.mean(0))
