"""VRF: variational reward factorization; a user is a Gaussian that comparisons multiply."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, preference_loss
from raypref.methods.contexts import draw_contexts
from raypref.methods.gaussians import (
    kl_to_mixture_bound,
    kl_to_mixture_sampled,
    precision,
    product,
    wasserstein2,
)
from raypref.methods.linear import LinearRewardModel
from raypref.types import Dims, Episodes, Landscape, Latent, Loss, Reward


class VRFConfig(MethodConfig):
    """Variational reward factorization: a user is a Gaussian, inferred in one pass, with its uncertainty."""

    citation: ClassVar[str] = "VRF, arXiv 2604.00997 (2026)"

    type: Literal["vrf"] = "vrf"
    recipe: Recipe = Recipe(steps=1500, users_per_step=64, targets=64, lr=2e-3, weight_decay=0.1, clip=10.0)
    head_rate: PositiveFloat = Field(
        default=3.0, description="Learning rate of the reward heads, times recipe.lr."
    )
    bases: PositiveInt = Field(default=10, description="K, the number of preference bases.")
    latent: PositiveInt = Field(default=32, description="L, width of the preference space; at least K.")
    hidden: PositiveInt = Field(
        default=128, description="H, width of the pair encoder's hidden layer; at least K."
    )
    features: int = Field(
        default=64,
        ge=0,
        description="Linear features of a pair that the encoder sees beside its K basis differences.",
    )
    dropout: float = Field(default=0.2, ge=0, lt=1, description="Of the pair encoder's input.")
    draws: PositiveInt = Field(
        default=4, description="R, splits into context and targets of each user in a step."
    )
    max_context: PositiveInt = Field(default=32, description="Most comparisons in a training context.")
    prior_precision: PositiveFloat = Field(default=1.0, description="Λ₀ of the prior expert N(0, 1/Λ₀).")
    temperature: PositiveFloat | None = Field(
        default=None, description="τ of the weights' softmax; default √L."
    )
    variance: Literal["between", "posterior", "both"] = Field(
        default="between",
        description="Of a reward: the bases' disagreement under the weights, the weights' spread under the "
        "user's Gaussian, or the sum of both.",
    )
    attenuate: bool = Field(default=True, description="Let the variance soften the margin in the loss.")
    prior: Literal["mixture", "normal"] = Field(
        default="mixture", description="What the KL pulls users towards."
    )
    kl: NonNegativeFloat = Field(
        default=1e-3, description="β, weight of the KL in nats; rises over a fifth of training."
    )
    kl_samples: int = Field(
        default=0, ge=0, description="Monte Carlo samples of the KL; 0 takes its closed bound."
    )
    separation: NonNegativeFloat = Field(
        default=0.1, description="Weight of the loss that keeps the bases apart."
    )
    population: NonNegativeFloat = Field(
        default=10.0,
        description="Weight of the common reward's own loss: it serves users nothing is known of.",
    )
    basis_l2: NonNegativeFloat = Field(
        default=0.0,
        description="Penalty on a basis head's mean squared norm, growing with D from 384; about 10 where "
        "all items to judge are new.",
    )
    common_l2: NonNegativeFloat = Field(
        default=0.02,
        description="Penalty on its squared norm, growing with D from 384, for each loss the common reward "
        "stands in.",
    )
    samples: PositiveInt = Field(default=16, description="S, samples behind the posterior variance.")
    basis_gap: PositiveFloat = Field(
        default=3.0, description="At the start μ_k is this times the k-th unit vector."
    )
    evidence_gain: PositiveFloat = Field(
        default=10.0, description="At the start a pair moves axis k by −this·softplus(−Δ_k)."
    )
    log_precision: float = Field(default=-3.0, description="Log precision of one comparison at the start.")
    head_spread: PositiveFloat = Field(default=0.3, description="Basis heads start as N(0, this²/D).")

    @model_validator(mode="after")
    def _wide_enough(self) -> VRFConfig:
        if min(self.latent, self.hidden) < self.bases:
            raise ValueError("latent and hidden must be at least bases")
        return self

    def build(self, dims: Dims) -> VRF:
        """Return an untrained model."""
        return VRF(self, dims)


class VRF(LinearRewardModel):
    """r_u = Σ_k w_uk φ_k, w_u = softmax_k(−W₂²(q_u, p_k)/τ) (VRF, arXiv 2604.00997).

    A two-layer MLP maps each comparison i to a Gaussian N(m_i, 1/λ_i) in the preference space; the product of
    a user's Gaussians and the prior expert N(0, 1/Λ₀) is q_u = N(μ_u, σ_u²). Bases are Gaussians p_k in the
    same space with rewards φ_k(x, y) = (b + a_k − Σ_j w⁰_j a_j)·e(x, y), w⁰ the weights of the prior expert:
    a user nothing is known of has the reward b·e, which a Bradley–Terry loss of its own fits to everybody.

    Evidence is (λ_i, λ_i·m_i), E = 2L, and adds up, so users update in any order by addition alone. The user
    vector is (μ_u, σ_u²), Z = 2L; the item features are the K basis rewards.

    What the paper leaves open, and what is chosen here: the pair representation is the K basis differences
    and a few linear features of e⁺ − e⁻ (the raw difference overfits). Training starts where the encoder
    already is a Bayes rule, log p_k ∝ −Σ_i softplus(−Δ_ik), and improves on it. Variance is that of the
    reward under the weights read as chances (law of total variance) unless the configuration says otherwise.
    """

    noise_SL: Tensor

    def __init__(self, config: VRFConfig, dims: Dims) -> None:
        """Start from the Bayes rule over K random rewards."""
        super().__init__(dims)
        self.config = config
        bases, latent, width = config.bases, config.latent, config.features + config.bases
        spread = dims.embedding**-0.5
        self.heads_KD = nn.Parameter(config.head_spread * spread * torch.randn(bases, dims.embedding))
        self.common_D = nn.Parameter(torch.zeros(dims.embedding))
        self.features_MD = nn.Parameter(spread * torch.randn(config.features, dims.embedding))
        self.hidden = nn.Linear(width, config.hidden)
        self.mean = nn.Linear(config.hidden, latent)
        self.log_precision = nn.Linear(config.hidden, latent)
        self.basis_mean_KL = nn.Parameter(config.basis_gap * torch.eye(bases, latent))
        self.basis_log_std_KL = nn.Parameter(torch.zeros(bases, latent))
        self.register_buffer("noise_SL", torch.randn(config.samples, latent))
        self.dropout = nn.Dropout(config.dropout)
        self.temperature = config.temperature or math.sqrt(latent)
        with torch.no_grad():
            self.hidden.bias.zero_()
            self.hidden.weight[:bases] = 0.0
            self.hidden.weight[:bases, config.features :] = -torch.eye(bases)
            self.mean.bias.zero_()
            self.mean.weight *= 0.1
            self.mean.weight[:, :bases] = -config.evidence_gain * torch.eye(latent, bases)
            self.log_precision.weight.zero_()
            self.log_precision.bias.fill_(config.log_precision)

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the K basis rewards."""
        return self.project(emb_ND, self._rewards())

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return precision and precision·mean of the comparison's Gaussian."""
        return self._encode_pair(*self._pair(chosen_ND, rejected_ND))

    def _prior_weights(self) -> Tensor:
        """Return weights_K of the user nothing is known of, N(0, 1/Λ₀)."""
        mean_L = torch.zeros_like(self.basis_mean_KL[0])
        return self.weights(mean_L, torch.full_like(mean_L, 1.0 / self.config.prior_precision))

    def _rewards(self) -> Tensor:
        """Return rewards_KD, the bases' directions; the prior weights' average is the common one."""
        return self.heads_KD - self._prior_weights() @ self.heads_KD + self.common_D

    def _pair(self, chosen_ND: Tensor, rejected_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the linear features and the basis differences of comparisons."""
        heads_FD = torch.cat([self.features_MD, self._rewards()])
        both_NF = self.project_difference(chosen_ND, rejected_ND, heads_FD)
        return both_NF[..., : self.config.features], both_NF[..., self.config.features :]

    def _encode_pair(self, feature_NM: Tensor, delta_NK: Tensor) -> Tensor:
        hidden_NH = F.softplus(self.hidden(self.dropout(torch.cat([feature_NM, delta_NK], -1))))
        precision_NL = precision(self.log_precision(hidden_NH).float())
        return torch.cat([precision_NL, precision_NL * self.mean(hidden_NH).float()], -1)

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return mean and variance of the user's Gaussian: a sum over comparisons."""
        return torch.cat(product(evidence_BPE, mask_BP, self.config.prior_precision), -1)

    def weights(self, mean_BL: Tensor, var_BL: Tensor) -> Tensor:
        """Return weights_BK of users: how near each basis is."""
        distance_BK = wasserstein2(
            mean_BL.unsqueeze(-2),
            var_BL.unsqueeze(-2),
            self.basis_mean_KL,
            (2.0 * self.basis_log_std_KL).exp(),
        )
        return torch.softmax(-distance_BK / self.temperature, -1)

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return Σ_k w_k φ_k and its variance, of the kind that the configuration names."""
        mean_BL, var_BL = user_BZ.chunk(2, -1)
        weights_BK = self.weights(mean_BL, var_BL)
        mean_BN = (item_BNF @ weights_BK.unsqueeze(-1)).squeeze(-1)
        var_BN = torch.zeros_like(mean_BN)
        if self.config.variance in ("between", "both"):
            # Σ w φ² − (Σ w φ)², centred first: the difference of two large squares would lose its digits.
            spread_BNK = (item_BNF - mean_BN.unsqueeze(-1)).square()
            var_BN = var_BN + (spread_BNK @ weights_BK.unsqueeze(-1)).squeeze(-1)
        if self.config.variance in ("posterior", "both"):
            var_BN = var_BN + self._posterior_variance(item_BNF, user_BZ)
        return Reward(mean_BN, var_BN)

    def _posterior_variance(self, item_BNF: Tensor, user_BZ: Tensor) -> Tensor:
        """Return var_BN of the reward over S samples of the user's Gaussian."""
        mean_BL, var_BL = user_BZ.chunk(2, -1)
        z_SBL = mean_BL + var_BL.sqrt() * self.noise_SL.unsqueeze(1)
        squared_SBK = (z_SBL.unsqueeze(-2) - self.basis_mean_KL).square().sum(-1)
        sampled_SBK = torch.softmax(-squared_SBK / self.temperature, -1)
        return (item_BNF @ sampled_SBK.unsqueeze(-1)).squeeze(-1).var(0, correction=0)

    def doubt(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Tensor:
        """Return the variance of reward differences over the user's Gaussian; more comparisons narrow it."""
        return self._posterior_variance(chosen_BNF - rejected_BNF, user_BZ)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the variance-attenuated BT loss over random contexts, the KL and the separation loss."""
        config, target = self.config, episodes.target
        feature_BPM, delta_BPK = self._pair(target.chosen_BPD, target.rejected_BPD)
        evidence_BPE = self._encode_pair(feature_BPM, delta_BPK)
        context_RBP, scored_RBP = draw_contexts(target.mask_BP, config.draws, config.max_context)
        # R draws of B users are R·B users with the same comparisons.
        user_XZ = torch.cat([self.infer(evidence_BPE, context_BP) for context_BP in context_RBP])
        margin = self.reward(delta_BPK.repeat(config.draws, 1, 1), user_XZ)
        if not config.attenuate:
            margin = Reward(margin.mean_BN)
        vbt = preference_loss(margin, scored_RBP.flatten(0, 1))
        mean_XL, var_XL = user_XZ.chunk(2, -1)
        kl, separation = self._kl(mean_XL, var_XL), self._separation()
        # The common reward as everybody's, without doubt: what BT learns, so that no shots are no worse.
        population = preference_loss(Reward(delta_BPK @ self._prior_weights()), target.mask_BP)
        penalty = config.basis_l2 * self.ridge(self.heads_KD) / config.bases
        penalty = penalty + (1 + config.population) * config.common_l2 * self.ridge(self.common_D)
        total = vbt + config.population * population + penalty
        total = total + config.kl * min(1.0, 5.0 * progress) * kl + config.separation * separation
        parts: dict[str, Tensor] = {"vbt": vbt, "population": population}
        parts |= {"kl": kl, "separation": separation, "penalty": penalty}
        if margin.var_BN is not None:
            # Doubt belongs on the comparisons that are ranked wrongly; doubt everywhere is an escape.
            right, scored = margin.mean_BN > 0, scored_RBP.flatten(0, 1) > 0
            parts["var_right"] = _mean_where(margin.var_BN, right & scored)
            parts["var_wrong"] = _mean_where(margin.var_BN, ~right & scored)
        return Loss(total, {name: part.detach() for name, part in parts.items()})

    def _prior(self) -> tuple[Tensor, Tensor]:
        """Return means and variances of the mixture that the KL pulls users towards."""
        mean_KL, var_KL = self.basis_mean_KL, (2.0 * self.basis_log_std_KL).exp()
        if self.config.prior == "normal":
            return torch.zeros_like(mean_KL[:1]), torch.ones_like(var_KL[:1])
        return mean_KL, var_KL

    def _kl(self, mean_XL: Tensor, var_XL: Tensor) -> Tensor:
        if self.config.kl_samples:
            noise_SXL = torch.randn(self.config.kl_samples, *mean_XL.shape, device=mean_XL.device)
            return kl_to_mixture_sampled(mean_XL, var_XL, *self._prior(), noise_SXL).mean()
        return kl_to_mixture_bound(mean_XL, var_XL, *self._prior()).mean()

    def _separation(self) -> Tensor:
        """Return the mean of exp(−W₂²/τ) over pairs of different bases, in [0, 1]."""
        var_KL = (2.0 * self.basis_log_std_KL).exp()
        distance_KK = wasserstein2(
            self.basis_mean_KL.unsqueeze(1), var_KL.unsqueeze(1), self.basis_mean_KL, var_KL
        )
        bases = self.config.bases
        return (torch.exp(-distance_KK / self.temperature).sum() - bases) / max(1, bases * (bases - 1))

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return heads with their own rate, bases without decay, and the encoder."""
        bases = [self.basis_mean_KL, self.basis_log_std_KL]
        taken = {id(parameter) for parameter in [self.heads_KD, self.common_D, *bases]}
        encoder = [parameter for parameter in self.parameters() if id(parameter) not in taken]
        decay = recipe.weight_decay
        return [
            {"params": [self.heads_KD], "lr": self.config.head_rate * recipe.lr, "weight_decay": decay},
            {"params": [self.common_D], "lr": self.config.head_rate * recipe.lr, "weight_decay": 0.0},
            {"params": bases, "lr": recipe.lr, "weight_decay": 0.0},
            {"params": encoder, "lr": recipe.lr, "weight_decay": decay},
        ]

    def latent(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Latent:
        """Return the users' Gaussians; the KL is its closed bound, whatever training takes."""
        mean_BL, var_BL = self.infer(evidence_BPE, mask_BP).chunk(2, -1)
        return Latent(mean_BL, mean_BL, var_BL, kl_to_mixture_bound(mean_BL, var_BL, *self._prior()))

    def landscape(self, user_BZ: Tensor) -> Landscape:
        """Return the users' Gaussians and the bases, all in the preference space."""
        mean_BL, var_BL = user_BZ.chunk(2, -1)
        return Landscape(mean_BL, var_BL, self.basis_mean_KL.detach())

    def steer(self, place_BL: Tensor) -> Tensor:
        """Return users whose Gaussian is that point."""
        return torch.cat([place_BL, torch.zeros_like(place_BL)], -1)


def _mean_where(value: Tensor, where: Tensor) -> Tensor:
    return (value * where).sum() / where.sum().clamp_min(1)
