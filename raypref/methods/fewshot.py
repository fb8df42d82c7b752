"""A user's weights from a few comparisons: batched solvers in K dimensions for the linear methods.

The likelihood of a comparison is σ(c + f·w): c is the margin that everybody shares, f the differences of the
K basis rewards, w the user's weights. Nothing here knows D; sums over comparisons, never means, so a user
alone equals that user in a batch, and a mask of 0 removes a comparison exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PARTICLE_NUMBERS = 2**18
"""Margins of users under particles that are held at a time on a CPU: as many as its cache holds."""

DEVICE_NUMBERS = 2**26
"""The same on an accelerator, which wants work in large pieces."""

RIDGE = 1e-13
"""Of a precision's trace, added to its diagonal: less than rounding can take from its smallest eigenvalue."""


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
    mean_BK, cov_BKK, _ = _variational(common_BP, feature_BPK, mask_BP, iterations)
    return mean_BK.to(feature_BPK.dtype), cov_BKK.to(feature_BPK.dtype)


def _variational(
    common_BP: Tensor, feature_BPK: Tensor, mask_BP: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean_BK, cov_BKK and the curvature λ_BP of the tightened bound, in float64.

    In float32 the prior's precision of 1 is lost beside a few comparisons of large and similar features.
    """
    parts = [
        _rounds(common_BP[part], feature_BPK[part], mask_BP[part], iterations)
        for part in _pieces(mask_BP, 2 * feature_BPK.shape[-1])
    ]
    mean_BK, cov_BKK, lam_BP = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean_BK, cov_BKK, lam_BP


def _rounds(
    common_BP: Tensor, feature_BPK: Tensor, mask_BP: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_variational` does, of users whose comparisons fit the cache."""
    common_BP, mask_BP = common_BP.double(), mask_BP.double()
    feature_BKP = feature_BPK.mT.double()
    identity_KK = torch.eye(feature_BKP.shape[1], dtype=feature_BKP.dtype, device=feature_BKP.device)
    xi_BP = torch.sqrt(common_BP.square() + feature_BKP.square().sum(1))
    half_BK1 = 0.5 * (feature_BKP @ mask_BP.unsqueeze(-1))
    root_BKK, pull_BK1 = identity_KK.expand(len(feature_BKP), -1, -1), torch.zeros_like(half_BK1)
    for _ in range(iterations):
        lam_BP = curvature(xi_BP.float()) * mask_BP
        weighted_BKP = (2.0 * lam_BP).unsqueeze(-2) * feature_BKP
        factor_BKK = _factor(identity_KK + weighted_BKP @ feature_BKP.mT)
        # cov = Rᵀ·R with R the factor's inverse: R·f has the variance of f·w as its squared norm.
        root_BKK = torch.linalg.solve_triangular(factor_BKK, identity_KK, upper=False)
        pull_BK1 = root_BKK @ (half_BK1 - weighted_BKP @ common_BP.unsqueeze(-1))
        turned_BKP = root_BKK @ feature_BKP
        margin_BP = common_BP + (pull_BK1.mT @ turned_BKP).squeeze(-2)
        xi_BP = torch.sqrt(margin_BP.square() + turned_BKP.square().sum(1))
    mean_BK = (root_BKK.mT @ pull_BK1).squeeze(-1)
    return mean_BK, root_BKK.mT @ root_BKK, curvature(xi_BP.float()).double()


def _factor(precision_BKK: Tensor) -> Tensor:
    """Return the Cholesky factor of precisions, kept positive; unchecked, so that a NaN flows on."""
    diagonal_BK = precision_BKK.diagonal(dim1=-2, dim2=-1)
    return torch.linalg.cholesky_ex(
        precision_BKK + torch.diag_embed((RIDGE * diagonal_BK.sum(-1, keepdim=True)).expand_as(diagonal_BK))
    ).L


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
    for part in _pieces(mask_BP, len(weights_SK)):
        chance_BPS = _chance(common_BP[part], feature_BPK[part], weights_SK)
        parts.append(_total(chance_BPS, mask_BP[part]))
    return torch.cat(parts)


def _pieces(mask_BP: Tensor, particles: int) -> Iterator[slice]:
    """Yield slices of users whose margins under all particles fit at a time, an empty one of no users."""
    users, width = mask_BP.shape
    numbers = PARTICLE_NUMBERS if mask_BP.device.type == "cpu" else DEVICE_NUMBERS
    size = max(1, numbers // max(1, width * particles))
    for first in range(0, max(1, users), size):
        yield slice(first, first + size)


def _chance(common_BP: Tensor, feature_BPK: Tensor, weights_SK: Tensor) -> Tensor:
    """Return σ(c + f·w_s), BPS: the probability of each comparison under each particle."""
    evidence_BPE = torch.cat([common_BP.unsqueeze(-1), feature_BPK], -1)
    return torch.sigmoid_(evidence_BPE @ F.pad(weights_SK, (1, 0), value=1.0).mT)


def _total(chance_BPS: Tensor, mask_BP: Tensor) -> Tensor:
    """Return loglik_BS and use up the chances; one that is less than a float32 can say counts as that."""
    log_BPS = chance_BPS.clamp_min_(torch.finfo(chance_BPS.dtype).tiny).log_()
    return (mask_BP.unsqueeze(1) @ log_BPS).squeeze(1)


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
    _, _, lam_BP = _variational(common_BP, feature_BPK, mask_BP, iterations)
    weighted_BKP = (2.0 * lam_BP * mask_BP).unsqueeze(-2) * feature_BPK.mT.double()
    precision_KK = torch.linalg.inv(kernel_KK.double())
    factor_BKK = _factor(precision_KK + weighted_BKP @ feature_BPK.double())
    # C = R·Rᵀ, and Rᵀ·g_s from Rᵀ·f: what a large feature scales up, R has scaled down before.
    root_BKK = torch.linalg.solve_triangular(
        factor_BKK, torch.eye(len(kernel_KK)).to(factor_BKK), upper=False
    )
    lever_BKP = (root_BKK @ (mask_BP.unsqueeze(-2) * feature_BPK.mT).double()).to(feature_BPK.dtype)
    within_BKK = (root_BKK.mT @ root_BKK).to(feature_BPK.dtype)
    root_BKK = root_BKK.mT.to(feature_BPK.dtype)
    reach_BK1 = lever_BKP.sum(-1, keepdim=True)
    means: list[Tensor] = []
    covs: list[Tensor] = []
    for part in _pieces(mask_BP, len(weights_SK)):
        chance_BPS = _chance(common_BP[part], feature_BPK[part], weights_SK)
        turned_BKS = torch.baddbmm(reach_BK1[part], lever_BKP[part], chance_BPS, alpha=-1)
        loglik_BS = _total(chance_BPS, mask_BP[part])
        chance_BS = torch.softmax(loglik_BS + 0.5 * turned_BKS.square().sum(1), 1)
        moved_BKS = torch.baddbmm(weights_SK.mT.expand_as(turned_BKS), root_BKK[part], turned_BKS)
        mean_BK1 = moved_BKS @ chance_BS.unsqueeze(-1)
        around_BKS = moved_BKS - mean_BK1
        means.append(mean_BK1.squeeze(-1))
        covs.append(torch.baddbmm(within_BKK[part], around_BKS * chance_BS.unsqueeze(1), around_BKS.mT))
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
    slope_BP = _slope((feature_BPK @ weights_BK.unsqueeze(-1)).squeeze(-1)) * mask_BP
    weighted_BKP = (slope_BP.unsqueeze(-1) * feature_BPK).mT.double()
    floor_KK = floor * torch.eye(feature_BPK.shape[-1]).to(weighted_BKP)
    factor_BKK = _factor(floor_KK + weighted_BKP @ feature_BPK.double())
    return torch.cholesky_inverse(factor_BKK).to(feature_BPK.dtype)


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
