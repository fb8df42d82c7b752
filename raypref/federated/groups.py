"""The groups that a server puts its clients in: k-means of about equal shares, matched to prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raypref.methods.base import RewardModel
from raypref.methods.peers import assign

ROUNDS = 20


@torch.no_grad()
def group(model: RewardModel, vector_JZ: Tensor, before_J: Tensor) -> Tensor:
    """Return each client's group, the number of the prototype that its cluster is nearest to (int64).

    The clusters are of about equal size (FedVPA-GP, arXiv 2605.30873), by Sinkhorn's iterations, found from
    where they were in the round before, and from the prototypes at first. A Hungarian matching by cosine
    names them, so a group keeps its prototype from round to round. -1 where the method has no prototypes, or
    more than clients.

    Args:
        model: its `landscape` says where users and prototypes are.
        vector_JZ: user vectors of J clients.
        before_J: their groups before, -1 where unknown.
    """
    landscape = model.landscape(vector_JZ)
    if landscape is None or landscape.bases_KL is None or len(vector_JZ) < len(landscape.bases_KL):
        return torch.full_like(before_J, -1)
    mean_JL, prototype_KL = landscape.mean_BL, landscape.bases_KL
    center_KL = _centers(mean_JL, before_J, prototype_KL)
    cluster_J = assign(mean_JL, center_KL)
    for _ in range(ROUNDS):
        center_KL = _centers(mean_JL, cluster_J, center_KL)
        again_J = assign(mean_JL, center_KL)
        if torch.equal(again_J, cluster_J):
            break
        cluster_J = again_J
    cosine_KK = F.normalize(center_KL, dim=-1) @ F.normalize(prototype_KL, dim=-1).mT
    cluster_K, named_K = linear_sum_assignment(-cosine_KK.numpy())
    name_K = torch.empty(len(prototype_KL), dtype=torch.int64)
    name_K[torch.from_numpy(cluster_K)] = torch.from_numpy(named_K)
    return name_K[cluster_J]


def _centers(mean_JL: Tensor, cluster_J: Tensor, otherwise_KL: Tensor) -> Tensor:
    """Return the mean of each cluster; of an empty one, what stands in its place."""
    member_KJ = F.one_hot(cluster_J.clamp_min(0), len(otherwise_KL)).mT * (cluster_J >= 0)
    count_K1 = member_KJ.sum(1, keepdim=True)
    mean_KL = member_KJ.float() @ mean_JL / count_K1.clamp_min(1)
    return torch.where(count_K1 > 0, mean_KL, otherwise_KL)
