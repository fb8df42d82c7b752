"""BT: one reward for everybody, the baseline that personal methods must beat."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, preference_loss
from raypref.methods.linear import LinearRewardModel
from raypref.types import Dims, Episodes, Loss, Reward


class BTConfig(MethodConfig):
    """Bradley–Terry with a linear head."""

    citation: ClassVar[str] = "Bradley and Terry, Biometrika 1952"

    type: Literal["bt"] = "bt"
    recipe: Recipe = Recipe(steps=600, users_per_step=256, targets=64, lr=1e-2)
    l2: float = Field(
        default=0.02, ge=0, description="Penalty on the squared norm of the head, growing with D from 384."
    )

    def build(self, dims: Dims) -> BT:
        """Return an untrained model."""
        return BT(self, dims)


class BT(LinearRewardModel):
    """Bradley–Terry: P(y⁺ ≻ y⁻ | x) = σ(v·(e(x, y⁺) − e(x, y⁻))), the same for every user.

    Bradley and Terry (1952); LoRe (arXiv 2504.14439) with one basis. Evidence and user vector are empty.
    """

    uncertain = False

    def __init__(self, config: BTConfig, dims: Dims) -> None:
        """Start from the zero head: every comparison is a tie."""
        super().__init__(dims)
        self.config = config
        self.head_D = nn.Parameter(torch.zeros(dims.embedding))

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the reward itself, F = 1."""
        return self.project(emb_ND, self.head_D.unsqueeze(0))

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return nothing, E = 0: a comparison says nothing about its user."""
        return self.head_D.new_zeros(*chosen_ND.shape[:-1], 0)

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return nothing, Z = 0: all users are the population."""
        return evidence_BPE.sum(1)

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return the item's reward, without a variance."""
        return Reward(item_BNF[..., 0])

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return −log σ(margin), averaged per user, plus the penalty."""
        user_BZ = self.infer(self.encode(episodes.context), episodes.context.mask_BP)
        nll = preference_loss(self(episodes.target, user_BZ), episodes.target.mask_BP)
        penalty = self.config.l2 * self.ridge(self.head_D)
        return Loss(nll + penalty, {"nll": nll.detach(), "penalty": penalty.detach()})
