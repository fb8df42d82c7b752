"""VRF: variational reward factorization; a user is a Gaussian that comparisons multiply."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, preference_loss
from raypref.methods.gaussians import kl_to_mixture_bound, kl_to_mixture_sampled, product, wasserstein2
from raypref.methods.linear import LinearRewardModel
from raypref.types import Dims, Episodes, Loss, Reward

LOG_PRECISION = 6.0
"""Bound of a comparison's log precision, both ways."""


class VRFConfig(MethodConfig):
    """Uncertainty-aware variational reward factorization."""

    type: Literal["vrf"] = "vrf"
    recipe: Recipe = Recipe(
        steps=1500, users_per_step=64, context=(0, 32), targets=64, lr=1e-3, weight_decay=0.1
    )
    bases: PositiveInt = Field(8, description="K, the number of preference bases.")
    latent: PositiveInt = Field(16, description="L, width of the preference space.")
    hidden: PositiveInt = Field(64, description="H, width of the pair encoder's hidden layer.")
    features: int = Field(16, ge=0, description="Learned linear features of a pair beside its basis outputs.")
    draws: PositiveInt = Field(4, description="Splits into context and targets that a step scores per user.")
    variance: Literal["between", "posterior", "both"] = Field(
        "between", description="Where a reward's variance comes from: the bases' disagreement under the "
        "weights, the spread of the weights under the user's Gaussian, or the sum."
    )
    attenuate: bool = Field(True, description="Divide the margin by its uncertainty in the loss.")
    kl: NonNegativeFloat = Field(1e-3, description="β, weight of the KL to the mixture of the bases, nats.")
    separation: NonNegativeFloat = Field(0.1, description="Weight of the loss that keeps bases apart.")
    basis_l2: NonNegativeFloat = Field(0.0, description="Penalty on the squared norm of the basis heads.")
    common_l2: NonNegativeFloat = Field(0.0, description="Penalty on the squared norm of the common head.")
    prior_precision: PositiveFloat = Field(1.0, description="Λ₀ of the prior expert N(0, 1/Λ₀).")
    temperature: PositiveFloat | None = Field(None, description="τ of the softmax; default √L.")
    samples: PositiveInt = Field(8, description="S, samples behind the posterior variance.")

    def build(self, dims: Dims) -> VRF:
        """Return an untrained model."""
        return VRF(self, dims)


class VRF(LinearRewardModel):
    """r_u = Σ_k w_uk φ_k with w_u = softmax_k(−W₂²(q_u, p_k)/τ) (VRF, arXiv 2604.00997).

    A two-layer MLP maps each comparison to a Gaussian in the preference space; their product with the prior
    expert is the user q_u = N(μ_u, σ_u²), so evidence (precision, precision·mean) adds up. Bases p_k are
    Gaussians in the same space, φ_k(x, y) = (a_k + b)·e with a common direction b.
    """
