"""DPL: one reward for everybody, but a distribution of it: how much users disagree about an item."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, RewardModel, preference_loss
from raypref.types import Dims, Episodes, Loss, Reward


class DPLConfig(MethodConfig):
    """Distributional preference learning: a reward is a distribution, the same for every user."""

    citation: ClassVar[str] = "DPL, arXiv 2312.08358"

    type: Literal["dpl"] = "dpl"
    recipe: Recipe = Recipe(steps=600, users_per_step=256, targets=64, lr=1e-2)
    head: Literal["gaussian", "categorical"] = Field(
        default="gaussian",
        description="gaussian: a mean and a variance per item; categorical: a chance per atom on [0, 1].",
    )
    atoms: int = Field(default=10, ge=2, description="categorical only: atoms the reward may take.")
    l2: NonNegativeFloat = Field(
        default=0.02, description="Penalty on the squared norm of the heads, growing with D from 384."
    )
    variance: NonNegativeFloat = Field(
        default=0.0, description="gaussian only: penalty on the mean variance of a comparison."
    )
    entropy: NonNegativeFloat = Field(
        default=0.1, description="categorical only: reward for the entropy, in nats, of the average item."
    )

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the penalty that keeps atoms level with Bradley–Terry for the categorical head."""
        return {"l2": 0.002} if raw.get("head") == "categorical" else {}

    def build(self, dims: Dims) -> DPL:
        """Return an untrained model."""
        return CategoricalDPL(self, dims) if self.head == "categorical" else GaussianDPL(self, dims)


class DPL(RewardModel):
    """P(y⁺ ≻ y⁻ | x) = P(R⁺ > R⁻), R the reward's distribution, the same for every user (arXiv 2312.08358).

    What all users share is known by its mean, what they disagree about by its variance. Evidence and user
    vector are empty.
    """

    heads_FD: nn.Parameter

    def __init__(self, config: DPLConfig, dims: Dims) -> None:
        """Keep the configuration; the heads are the kind's own."""
        super().__init__(dims)
        self.config = config

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return nothing, E = 0: a comparison says nothing about its user."""
        return self.heads_FD.new_zeros(*chosen_ND.shape[:-1], 0)

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return nothing, Z = 0: all users are the population."""
        return evidence_BPE.sum(1)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return −log P(chosen over rejected), averaged per user, plus the penalties."""
        target = episodes.target
        chosen_BPF, rejected_BPF = self.item(target.chosen_BPD), self.item(target.rejected_BPD)
        user_BZ = self.infer(self.encode(episodes.context), episodes.context.mask_BP)
        nll = preference_loss(self.margin(chosen_BPF, rejected_BPF, user_BZ), target.mask_BP)
        share_BP1 = (target.mask_BP / target.mask_BP.sum()).unsqueeze(-1)
        shape = self._shape((share_BP1 * (chosen_BPF + rejected_BPF)).sum((0, 1)) / 2.0)
        penalty = self.config.l2 * self.ridge(self.heads_FD)
        parts = {"nll": nll, "shape": shape, "penalty": penalty}
        return Loss(nll + shape + penalty, {name: part.detach() for name, part in parts.items()})

    @abstractmethod
    def _shape(self, average_F: Tensor) -> Tensor:
        """Return the kind's own penalty on the features of the average item."""


class GaussianDPL(DPL):
    """R ~ N(m, s²), m = v·e, s = softplus(ρ₀ + ρ·e): P = σ(√(2π)·(m⁺ − m⁻)/√(s⁺² + s⁻²)).

    The logistic function stands for the normal one, Φ(t) ≈ σ(√(2π)·t). Rewards have no scale of their own, so
    the offset ρ₀ is fixed, where items that do not differ in s leave Bradley–Terry: s = √π.
    """

    def __init__(self, config: DPLConfig, dims: Dims) -> None:
        """Start close to zero heads: every comparison is a tie, everything equally disputed."""
        super().__init__(config, dims)
        self.heads_FD = nn.Parameter(1e-2 * dims.embedding**-0.5 * torch.randn(2, dims.embedding))
        self.offset = math.log(math.expm1(math.sqrt(math.pi)))

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return mean and variance of the reward, F = 2."""
        mean_N, spread_N = self.project(emb_ND, self.heads_FD).unbind(-1)
        return torch.stack([mean_N, F.softplus(self.offset + spread_N).square()], -1)

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return the item's mean and variance."""
        return Reward(item_BNF[..., 0], item_BNF[..., 1])

    def margin(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return the difference of the means, the sum of the variances, and the paper's link."""
        mean_BN = chosen_BNF[..., 0] - rejected_BNF[..., 0]
        var_BN = chosen_BNF[..., 1] + rejected_BNF[..., 1]
        return Reward(mean_BN, var_BN, math.sqrt(2.0 * math.pi) * mean_BN / var_BN.sqrt())

    def doubt(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> None:
        """Return None: the spread is that of the population, which no comparison of one user settles."""

    def _shape(self, average_F: Tensor) -> Tensor:
        return self.config.variance * 2.0 * average_F[1]


class CategoricalDPL(DPL):
    """R is one of A atoms on [0, 1], p = softmax(V e): P = Σ_{a>b} p⁺_a p⁻_b + ½ Σ_a p⁺_a p⁻_a."""

    atom_A: Tensor

    def __init__(self, config: DPLConfig, dims: Dims) -> None:
        """Start from zero heads: every atom is as likely for every item."""
        super().__init__(config, dims)
        self.heads_FD = nn.Parameter(torch.zeros(config.atoms, dims.embedding))
        self.register_buffer("atom_A", torch.linspace(0.0, 1.0, config.atoms), persistent=False)

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the chance of each atom, F = A."""
        return torch.softmax(self.project(emb_ND, self.heads_FD), -1)

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return mean and variance over the atoms."""
        return Reward(*self._moments(item_BNF))

    def margin(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return the difference of the means, the sum of the variances, and the logit of P."""
        chosen_BN, chosen_var_BN = self._moments(chosen_BNF)
        rejected_BN, rejected_var_BN = self._moments(rejected_BNF)
        link_BN = _wins(chosen_BNF, rejected_BNF).log() - _wins(rejected_BNF, chosen_BNF).log()
        return Reward(chosen_BN - rejected_BN, chosen_var_BN + rejected_var_BN, link_BN)

    def _moments(self, item_BNF: Tensor) -> tuple[Tensor, Tensor]:
        mean_BN = item_BNF @ self.atom_A
        spread_BNA = (self.atom_A - mean_BN.unsqueeze(-1)).square()
        return mean_BN, (item_BNF * spread_BNA).sum(-1)

    def _shape(self, average_F: Tensor) -> Tensor:
        return -self.config.entropy * torch.special.entr(average_F).sum()


def _wins(first_BNA: Tensor, second_BNA: Tensor) -> Tensor:
    """Return the chance that the first draw is the greater, a draw counting half."""
    below_BNA = second_BNA.cumsum(-1) - 0.5 * second_BNA
    return (first_BNA * below_BNA).sum(-1).clamp_min(torch.finfo(first_BNA.dtype).tiny)
