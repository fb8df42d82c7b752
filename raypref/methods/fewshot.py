"""A user's weights from a few comparisons: batched solvers in K dimensions for the linear methods.

The likelihood of a comparison is σ(c + f·w): c is the margin that everybody shares, f the differences of the
K basis rewards, w the user's weights. Nothing here knows D; sums over comparisons, never means, so a user
alone equals that user in a batch, and a mask of 0 removes a comparison exactly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PARTICLE_USERS = 256
"""Users whose likelihoods under all particles are held at a time."""


def curvature(margin: Tensor) -> Tensor:
    """Return λ(ξ) = tanh(ξ/2) / (4ξ), the curvature of Jaakkola and Jordan's bound of log σ at ξ."""
    safe = margin.abs().clamp_min(1e-4)
    return torch.tanh(0.5 * safe) / (4.0 * safe)


def gaussian_posterior(
    common_BP: Tensor, feature_BPK: Tensor, mask_BP: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return mean_BK and cov_BKK of the weights under a standard-normal prior.

    Variational logistic regression (Jaakkola and Jordan, Statistics and Computing 2000): each iteration
    solves for the Gaussian that is exact under the quadratic bound of the likelihood, then tightens the
    bound. Without comparisons the result is the prior.

    Args:
        common_BP: shared margin of each comparison.
        feature_BPK: basis differences of each comparison.
        mask_BP: weight of each comparison, 0 where padded.
        iterations: rounds; the bound never loosens, 8 are enough for three digits.
    """
    identity_KK = torch.eye(feature_BPK.shape[-1], dtype=feature_BPK.dtype, device=feature_BPK.device)
    xi_BP = torch.sqrt(common_BP.square() + feature_BPK.square().sum(-1))
    mean_BK = feature_BPK.new_zeros(feature_BPK.shape[0], feature_BPK.shape[-1])
    cov_BKK = identity_KK.expand(feature_BPK.shape[0], -1, -1)
    for _ in range(iterations):
        lam_BP = curvature(xi_BP) * mask_BP
        precision_BKK = identity_KK + 2.0 * (feature_BPK * lam_BP.unsqueeze(-1)).mT @ feature_BPK
        pull_BP = 0.5 * mask_BP - 2.0 * lam_BP * common_BP
        # The precision is at least the identity; unchecked, so that a NaN flows on to whoever reports it.
        factor_BKK = torch.linalg.cholesky_ex(precision_BKK).L
        pull_BK1 = (feature_BPK * pull_BP.unsqueeze(-1)).sum(1).unsqueeze(-1)
        mean_BK = torch.cholesky_solve(pull_BK1, factor_BKK).squeeze(-1)
        cov_BKK = torch.cholesky_inverse(factor_BKK)
        xi_BP = torch.sqrt(second_moment(common_BP, feature_BPK, mean_BK, cov_BKK))
    return mean_BK, cov_BKK


def second_moment(common_BP: Tensor, feature_BPK: Tensor, mean_BK: Tensor, cov_BKK: Tensor) -> Tensor:
    """Return E[(c + f·w)²] per comparison for w ~ N(mean, cov)."""
    margin_BP = common_BP + (feature_BPK @ mean_BK.unsqueeze(-1)).squeeze(-1)
    return margin_BP.square() + ((feature_BPK @ cov_BKK) * feature_BPK).sum(-1)


def variational_nll(
    common_BP: Tensor, feature_BPK: Tensor, mask_BP: Tensor, mean_BK: Tensor, cov_BKK: Tensor
) -> Tensor:
    """Return a bound of −E[log σ(c + f·w)] summed over comparisons, up to what does not depend on c and f.

    Its gradient in c and f is that of the tightest Jaakkola bound: the M step of variational EM.
    """
    margin_BP = common_BP + (feature_BPK @ mean_BK.unsqueeze(-1)).squeeze(-1)
    moment_BP = second_moment(common_BP, feature_BPK, mean_BK, cov_BKK)
    lam_BP = curvature(moment_BP.detach().sqrt())
    return ((lam_BP * moment_BP - 0.5 * margin_BP) * mask_BP).sum()


def log_likelihood(common_BP: Tensor, feature_BPK: Tensor, mask_BP: Tensor, weights_SK: Tensor) -> Tensor:
    """Return loglik_BS: Σ_p log σ(c + f·w_s) of each user's comparisons under each particle, nats."""
    parts: list[Tensor] = []
    for first in range(0, len(common_BP), PARTICLE_USERS):
        chunk = slice(first, first + PARTICLE_USERS)
        margin_BPS = common_BP[chunk].unsqueeze(-1) + feature_BPK[chunk] @ weights_SK.mT
        parts.append((F.logsigmoid(margin_BPS) * mask_BP[chunk].unsqueeze(-1)).sum(1))
    return torch.cat(parts) if parts else common_BP.new_zeros(0, len(weights_SK))


def mixture_posterior(
    common_BP: Tensor,
    feature_BPK: Tensor,
    mask_BP: Tensor,
    weights_SK: Tensor,
    kernel_KK: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Return mean_BK and cov_BKK of the weights under a prior of S equal Gaussians N(w_s, kernel).

    Each component is updated on its own by one Newton step: with the gradient g_s of the log-likelihood at
    w_s and the curvature Λ of the user's comparisons (the same for all components), it becomes
    N(w_s + C·g_s, C), C = (kernel⁻¹ + Λ)⁻¹, with weight ∝ exp(loglik_s + ½ g_sᵀ C g_s). Without comparisons
    the result is the prior; with many the kernel lets the posterior leave the particles.

    Args:
        common_BP: shared margin of each comparison.
        feature_BPK: basis differences of each comparison.
        mask_BP: weight of each comparison, 0 where padded.
        weights_SK: centres of the prior.
        kernel_KK: covariance of each component.
        iterations: rounds of the Gaussian solver that finds the curvature.
    """
    means: list[Tensor] = []
    covs: list[Tensor] = []
    precision_KK = torch.linalg.inv(kernel_KK)
    for first in range(0, len(common_BP), PARTICLE_USERS):
        chunk = slice(first, first + PARTICLE_USERS)
        common, feature, mask = common_BP[chunk], feature_BPK[chunk], mask_BP[chunk]
        center, spread = gaussian_posterior(common, feature, mask, iterations)
        lam_BP = curvature(torch.sqrt(second_moment(common, feature, center, spread))) * mask
        curvature_BKK = 2.0 * (feature * lam_BP.unsqueeze(-1)).mT @ feature
        within_BKK = torch.linalg.inv(precision_KK + curvature_BKK)
        margin_BPS = common.unsqueeze(-1) + feature @ weights_SK.mT
        loglik_BS = (F.logsigmoid(margin_BPS) * mask.unsqueeze(-1)).sum(1)
        gradient_BSK = (torch.sigmoid(-margin_BPS) * mask.unsqueeze(-1)).mT @ feature
        step_BSK = gradient_BSK @ within_BKK
        chance_BS = torch.softmax(loglik_BS + 0.5 * (gradient_BSK * step_BSK).sum(-1), 1)
        moved_BSK = weights_SK + step_BSK
        mean_BK = (chance_BS.unsqueeze(1) @ moved_BSK).squeeze(1)
        around_BSK = moved_BSK - mean_BK.unsqueeze(1)
        means.append(mean_BK)
        covs.append(within_BKK + (around_BSK * chance_BS.unsqueeze(-1)).mT @ around_BSK)
    return torch.cat(means), torch.cat(covs)


def leave_one_out(loglik_SS: Tensor, weights_SK: Tensor, rounds: int) -> Tensor:
    """Return the weights of S users, each replaced by its posterior mean under the others as prior particles.

    Estimates from few comparisons scatter more than the truth; the others shrink them back.
    """
    own_SS = loglik_SS.clone().fill_diagonal_(-math.inf)
    for _ in range(rounds):
        weights_SK = torch.softmax(own_SS, 1) @ weights_SK
    return weights_SK


def laplace_covariance(
    feature_BPK: Tensor, mask_BP: Tensor, weights_BK: Tensor, floor: float = 1e-3
) -> Tensor:
    """Return cov_BKK = (floor·I + Σ_p σ'(f·w) f fᵀ)⁻¹: how sure comparisons make a point estimate of weights.

    Args:
        feature_BPK: basis differences of each comparison.
        mask_BP: weight of each comparison, 0 where padded.
        weights_BK: the point estimate.
        floor: information before the first comparison (PReF, arXiv 2503.06358).
    """
    identity_KK = torch.eye(feature_BPK.shape[-1], dtype=feature_BPK.dtype, device=feature_BPK.device)
    slope_BP = _slope((feature_BPK @ weights_BK.unsqueeze(-1)).squeeze(-1)) * mask_BP
    information_BKK = floor * identity_KK + (feature_BPK * slope_BP.unsqueeze(-1)).mT @ feature_BPK
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(information_BKK).L)


def expected_gain(feature_BNK: Tensor, mean_BK: Tensor, cov_BKK: Tensor) -> Tensor:
    """Return gain_BN = σ'(f·w)² · fᵀ cov f: how much a user's answer to each comparison would say of them.

    High where the answer is open and the weights are uncertain in its direction (PReF, arXiv 2503.06358);
    the same whichever item of a comparison comes first.

    Args:
        feature_BNK: basis differences of the comparisons that may be asked for.
        mean_BK: mean of each user's weights w.
        cov_BKK: their covariance.
    """
    slope_BN = _slope((feature_BNK @ mean_BK.unsqueeze(-1)).squeeze(-1))
    return slope_BN.square() * ((feature_BNK @ cov_BKK) * feature_BNK).sum(-1)


def _slope(margin: Tensor) -> Tensor:
    """Return σ'(margin)."""
    return torch.sigmoid(margin) * torch.sigmoid(-margin)


def pack(cov_BKK: Tensor) -> Tensor:
    """Return the lower triangle of symmetric matrices, row by row: K(K+1)/2 numbers."""
    row, column = torch.tril_indices(cov_BKK.shape[-1], cov_BKK.shape[-1], device=cov_BKK.device)
    return cov_BKK[..., row, column]


def unpack(packed_BT: Tensor, size: int) -> Tensor:
    """Return the symmetric matrices that `pack` packed."""
    row, column = torch.tril_indices(size, size, device=packed_BT.device)
    cov_BKK = packed_BT.new_zeros(*packed_BT.shape[:-1], size, size)
    cov_BKK[..., row, column] = packed_BT
    cov_BKK[..., column, row] = packed_BT
    return cov_BKK
