"""FedBiscuit: a few Bradley–Terry selectors; a user belongs to the one that agrees best with them."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, preference_loss
from raypref.methods.simplex import MixtureModel, on_simplex
from raypref.types import Dims, Episodes, Landscape, Loss, Reward


class BiscuitConfig(MethodConfig):
    """FedBiscuit's selectors: a few Bradley–Terry rewards, each trained by its own group of users."""

    citation: ClassVar[str] = "FedBiscuit, arXiv 2407.03038 (ICLR 2025)"

    type: Literal["biscuit"] = "biscuit"
    recipe: Recipe = Recipe(steps=600, users_per_step=256, targets=64, lr=1e-2)
    selectors: PositiveInt = Field(default=3, description="K, selectors, and so groups of users.")
    warmup: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the training before users have groups, when a step deals them out at random.",
    )
    l2: NonNegativeFloat = Field(
        default=0.02, description="Penalty on the squared norm of a selector, growing with D from 384."
    )

    def build(self, dims: Dims) -> Biscuit:
        """Return an untrained model."""
        return Biscuit(self, dims)


class Biscuit(MixtureModel):
    """r_u = Σ_k c_uk v_k·e, c_uk ∝ Π_i σ(v_k·(e⁺_i − e⁻_i)): FedBiscuit's selectors (arXiv 2407.03038).

    The K selectors v_k are Bradley–Terry rewards. A user trains the one of their group, v_g(u), by
    −log σ(margin) + l2·‖v_g(u)‖²; the others have no gradient from that user, not even zero, so that a server
    can average each over the clients who trained it. One selector alone is Bradley–Terry.

    The group g(u) is what `Episodes.peers` says, where a server has grouped all clients; else the users of
    the step vote (`balanced_vote`). During the warm-up each step deals its users out at random, whatever
    `Episodes.peers` says: groups made by untrained selectors would mean nothing.

    Groups are hard in training alone. A new user's c_u is the posterior from equal shares, which groups of
    equal size have; a user nothing is known of has the mean of the selectors. The published selectors are
    adapters of a language model, warmed up one after the other; these are linear heads, warmed up together.
    """

    peers = True

    def __init__(self, config: BiscuitConfig, dims: Dims) -> None:
        """Start from small random selectors: almost every comparison is a tie, but votes differ."""
        super().__init__(dims)
        self.config = config
        spread = 1e-2 * dims.embedding**-0.5
        starts = (spread * torch.randn(dims.embedding) for _ in range(config.selectors))
        self.selectors = nn.ParameterList(starts)
        self.register_buffer("log_prior_S", torch.zeros(config.selectors), persistent=False)

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the selectors' rewards, F = K."""
        return self.project(emb_ND, torch.stack([*self.selectors]))

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return the log-likelihood of the comparison under each selector, E = K."""
        return F.logsigmoid(self.project_difference(chosen_ND, rejected_ND, torch.stack([*self.selectors])))

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return each user's −log σ(margin) and penalty under the selector of their group, averaged."""
        target = episodes.target
        present_K, place_B = self._groups(episodes, progress).unique(return_inverse=True)
        heads_KD = torch.stack([self.selectors[group] for group in present_K.tolist()])
        margin_BPK = self.project_difference(target.chosen_BPD, target.rejected_BPD, heads_KD)
        margin_BP = margin_BPK.take_along_dim(place_B.reshape(-1, 1, 1), -1).squeeze(-1)
        nll = preference_loss(Reward(margin_BP), target.mask_BP)
        penalty = self.config.l2 * self.ridge(heads_KD[place_B]) / len(place_B)
        return Loss(nll + penalty, {"nll": nll.detach(), "penalty": penalty.detach()})

    @torch.no_grad()
    def _groups(self, episodes: Episodes, progress: float) -> Tensor:
        target, peers = episodes.target, episodes.peers
        if progress < self.config.warmup:
            users, device = len(target.mask_BP), target.mask_BP.device
            return balanced_vote(torch.rand(users, self.config.selectors, device=device))
        voted_B = balanced_vote((self.encode(target) * target.mask_BP.unsqueeze(-1)).sum(1))
        return voted_B if peers is None else torch.where(peers.group_B >= 0, peers.group_B, voted_B)

    def landscape(self, user_BZ: Tensor) -> Landscape:
        """Return the users' chances of each selector; the selectors are the corners of the simplex."""
        return Landscape(user_BZ, user_BZ * (1.0 - user_BZ), torch.eye(user_BZ.shape[-1]).to(user_BZ))

    def steer(self, place_BL: Tensor) -> Tensor:
        """Return users with these chances."""
        return on_simplex(place_BL)


def balanced_vote(loglik_BK: Tensor) -> Tensor:
    """Return each user's selector, every one with as many users as any other, give or take one.

    Greedy, as published: all vote for the selector they like best; the one with most votes keeps its share of
    the users and leaves the vote; the others vote again. It keeps whom it is surest of, not anyone.
    """
    users, selectors = loglik_BK.shape
    open_BK = loglik_BK.clone()
    group_B = torch.full((users,), -1, device=loglik_BK.device)
    for left in range(selectors, 0, -1):
        chance_BK = open_BK.softmax(-1)
        chance_BK[group_B >= 0] = -1.0
        sure_B, ballot_B = chance_BK.max(-1)
        elected = int(torch.bincount(ballot_B[group_B < 0], minlength=selectors).argmax())
        share = -(-int((group_B < 0).sum()) // left)
        kept = sure_B.masked_fill(ballot_B != elected, -1.0).topk(share).indices
        group_B[kept] = elected
        open_BK[:, elected] = -math.inf
    return group_B
