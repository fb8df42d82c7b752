"""The prior that FedVPA-GP (arXiv 2605.30873) makes of a user's peers, and their groups."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raypref.methods.gaussians import log_density


def gumbel(*shape: int, device: torch.device) -> Tensor:
    """Return standard Gumbel noise."""
    return -torch.empty(shape, device=device).exponential_().log()


def peer_weights(log_peers_BC: Tensor, same_BC: Tensor, noise_RBC: Tensor, temperature: float) -> Tensor:
    """Return log weights of C peers and then of N(0, 1), R × B × C + 1: w = softmax((log π + noise)/τ).

    A user is no peer of their own. N(0, 1) has all the weight where there are no peers, else none.

    Args:
        log_peers_BC: log π_ij, how much user i likes peer j.
        same_BC: whether i and j are one user.
        noise_RBC: standard Gumbel, or 0 for the expected choice.
        temperature: τ; the lower, the closer to one peer alone.
    """
    score_RBC = ((log_peers_BC + noise_RBC) / temperature).masked_fill(same_BC, -math.inf)
    alone_B = log_peers_BC.new_zeros(len(log_peers_BC)).masked_fill(~same_BC.all(1), -math.inf)
    alone_RB1 = alone_B.unsqueeze(-1).expand(len(noise_RBC), -1, 1)
    return torch.log_softmax(torch.cat([score_RBC, alone_RB1], -1), -1)


def kl_to_peers(
    z_RBL: Tensor,
    mean_RBL: Tensor,
    var_RBL: Tensor,
    peer_mean_CL: Tensor,
    peer_var_CL: Tensor,
    log_weight_RBC: Tensor,
) -> Tensor:
    """Return log q(z) − log Σ_c w_c N_c(z), nats, at z ~ q; the last component, beside peers, is N(0, 1)."""
    mean_CL = torch.cat([peer_mean_CL, peer_mean_CL.new_zeros(1, peer_mean_CL.shape[1])])
    var_CL = torch.cat([peer_var_CL, peer_var_CL.new_ones(1, peer_var_CL.shape[1])])
    log_p_RBC = log_density(z_RBL.unsqueeze(-2), mean_CL, var_CL)
    return log_density(z_RBL, mean_RBL, var_RBL) - torch.logsumexp(log_weight_RBC + log_p_RBC, -1)


@torch.no_grad()
def assign(mean_BL: Tensor, prototypes_ML: Tensor, rounds: int = 20) -> Tensor:
    """Return each user's prototype, prototypes chosen about equally often (Sinkhorn and Knopp 1967)."""
    score_BM = mean_BL @ prototypes_ML.mT
    log_BM = score_BM / (0.1 * score_BM.std(0, correction=0).mean()).clamp_min(1e-6)
    for _ in range(rounds):
        log_BM = torch.log_softmax(log_BM, 0)
        log_BM = torch.log_softmax(log_BM, 1)
    return log_BM.argmax(1)
