"""Diagonal Gaussians: products, distances and divergences in closed form.

Every function takes means and variances whose last axis is the space; leading axes broadcast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_PRECISION_BOUND = 6.0
"""A comparison's log precision stays within plus and minus this."""


def product(natural_BPE: Tensor, mask_BP: Tensor, prior_precision: float) -> tuple[Tensor, Tensor]:
    """Return mean_BL and var_BL of the product of each user's Gaussians and a N(0, 1/prior_precision) expert.

    Λ = Λ₀ + Σ mᵢ·λᵢ, μ = Σ mᵢ·λᵢ·μᵢ / Λ, where mᵢ is the mask. It is a sum: order and padding do not matter,
    and a Gaussian taken n times counts n times.

    Args:
        natural_BPE: λᵢ of each Gaussian, then λᵢ·μᵢ; E = 2L.
        mask_BP: weight of each Gaussian, 0 where padded.
        prior_precision: Λ₀; with 0 and no Gaussians the result is undefined.
    """
    # A product of matrices reads the evidence once; autocast would round its sum.
    with torch.autocast(natural_BPE.device.type, enabled=False):
        total_BE = (mask_BP.unsqueeze(1) @ natural_BPE).squeeze(1)
    precision_BL, weighted_BL = total_BE.chunk(2, -1)
    var_BL = 1.0 / (prior_precision + precision_BL)
    return var_BL * weighted_BL, var_BL


def wasserstein2(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distance: ‖μ_a − μ_b‖² + ‖σ_a − σ_b‖², summed over the last axis."""
    return (mean_a - mean_b).square().sum(-1) + (var_a.sqrt() - var_b.sqrt()).square().sum(-1)


def kl(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """Return KL(a ‖ b) in nats, summed over the last axis."""
    return 0.5 * (var_a / var_b + (mean_a - mean_b).square() / var_b - 1.0 + var_b.log() - var_a.log()).sum(
        -1
    )


def kl_to_normal(mean: Tensor, var: Tensor) -> Tensor:
    """Return KL(N(mean, var) ‖ N(0, I)) in nats, summed over the last axis."""
    return kl(mean, var, torch.zeros_like(mean), torch.ones_like(var))


def precision(log_precision: Tensor) -> Tensor:
    """Return the precision that a network names by its logarithm, kept within bounds."""
    return log_precision.clamp(-LOG_PRECISION_BOUND, LOG_PRECISION_BOUND).exp()


def log_density(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Return log N(x; mean, var) in nats, summed over the last axis."""
    return -0.5 * ((x - mean).square() / var + var.log() + math.log(2.0 * math.pi)).sum(-1)


def kl_to_mixture_bound(mean_BL: Tensor, var_BL: Tensor, mean_KL: Tensor, var_KL: Tensor) -> Tensor:
    """Return an upper bound of KL(q ‖ uniform mixture) per row, nats, without sampling.

    −log (1/K) Σ_k exp(−KL(q ‖ p_k)), the variational bound of Hershey and Olsen (ICASSP 2007); exact when
    the K components are one.
    """
    kl_BK = kl(mean_BL.unsqueeze(-2), var_BL.unsqueeze(-2), mean_KL, var_KL)
    return math.log(kl_BK.shape[-1]) - torch.logsumexp(-kl_BK, -1)


def kl_to_mixture_sampled(
    mean_BL: Tensor, var_BL: Tensor, mean_KL: Tensor, var_KL: Tensor, noise_SBL: Tensor
) -> Tensor:
    """Return a Monte Carlo estimate of KL(q ‖ uniform mixture) per row, nats, from normal noise."""
    z_SBL = mean_BL + var_BL.sqrt() * noise_SBL
    log_q_SB = log_density(z_SBL, mean_BL, var_BL)
    log_p_SBK = log_density(z_SBL.unsqueeze(-2), mean_KL, var_KL)
    log_p_SB = torch.logsumexp(log_p_SBK, -1) - math.log(log_p_SBK.shape[-1])
    return (log_q_SB - log_p_SB).mean(0)


def information_gain(mean: Tensor, var: Tensor) -> Tensor:
    """Return the mutual information, in nats, of Δ ~ N(mean, var) and an answer that is yes with σ(Δ).

    How much asking is expected to teach: H(E σ(Δ)) − E H(σ(Δ)) (BALD, arXiv 1112.5745), by Gauss–Hermite
    quadrature. At most ln 2, 0 where nothing is in doubt, and the same with the answers exchanged.

    Args:
        mean: of the reward difference, any shape.
        var: its variance, same shape.
    """
    node_S, weight_S = _hermite(mean)
    chance_S = torch.sigmoid(mean.unsqueeze(-1).double() + var.unsqueeze(-1).double().sqrt() * node_S)
    gain = _entropy(chance_S @ weight_S) - _entropy(chance_S) @ weight_S
    return gain.clamp_min(0.0).to(mean.dtype)


def _hermite(like: Tensor, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return nodes and weights for expectations under N(0, 1): eigenvalues of the Jacobi matrix."""
    step_S = torch.arange(1, size, dtype=torch.float64, device=like.device).sqrt()
    values_S, vectors_SS = torch.linalg.eigh(torch.diag(step_S, 1) + torch.diag(step_S, -1))
    return values_S, vectors_SS[0].square()


def _entropy(chance: Tensor) -> Tensor:
    return torch.special.entr(chance) + torch.special.entr(1.0 - chance)
