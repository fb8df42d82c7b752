"""What VPL and SPL share: a reward conditioned on a latent vector, inferred from a set of comparisons."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, RewardModel, preference_loss
from raypref.methods.contexts import draw_contexts
from raypref.methods.encoders import AttentionPosterior, ProductPosterior, anneal
from raypref.types import Dims, Episodes, Latent, Loss, Reward

RELEASED_RECIPE: Mapping[str, Any] = {
    "steps": 2800,
    "users_per_step": 32,
    "context": (8, 8),
    "targets": 1,
    "lr": 1e-4,
    "weight_decay": 1e-3,
    "warmup": 0.03,
    "clip": 1.0,
}
"""Two epochs of 1,000 users' 45 comparisons, each a target with eight others as its context."""


class LatentConfig(MethodConfig):
    """Settings of a latent method; the defaults keep the latent alive on sparse, noisy preferences."""

    recipe: Recipe = Recipe(steps=800, users_per_step=64, targets=64, lr=2e-3, weight_decay=0.1, clip=10.0)
    variant: Literal["robust", "released"] = Field(
        default="robust",
        description="robust: the defaults here, which keep the latent alive on sparse, noisy preferences; "
        "released: the defaults of the authors' code.",
    )
    posterior: Literal["product", "attention"] = Field(
        default="product",
        description="product: a Gaussian a comparison, multiplied; attention: self-attention, averaged.",
    )
    decoder: Literal["factored", "mlp"] = Field(
        default="factored",
        description="factored: the latent weighs linear item features; mlp: an MLP of embedding and latent.",
    )
    hidden: PositiveInt = Field(default=64, description="H, width of hidden layers.")
    population: NonNegativeFloat = Field(
        default=10.0,
        description="Weight of a common reward's own loss, which serves users nothing is known of; "
        "0 has no common reward.",
    )
    draws: NonNegativeInt = Field(
        default=4,
        description="R, contexts drawn of each user in a step; 0 takes the one that recipe.context draws.",
    )
    max_context: PositiveInt = Field(default=32, description="Most comparisons in a drawn context.")
    disjoint: bool = Field(
        default=True, description="Score only comparisons that are not in the drawn context."
    )
    kl: NonNegativeFloat = Field(default=1e-3, description="β, weight of the KL in nats.")
    cycles: PositiveInt = Field(default=1, description="Times that the KL's weight rises from 0.1 β to β.")
    free_nats: NonNegativeFloat = Field(default=0.0, description="KL of a user that costs nothing, nats.")
    clamp: PositiveFloat = Field(
        default=1.0, description="attention only: bound of the posterior's mean and log variance."
    )
    log_precision: float = Field(
        default=-3.0, description="product only: log precision of one comparison at the start."
    )
    dropout: float = Field(default=0.2, ge=0, lt=1, description="Of what the posterior sees.")
    basis_l2: NonNegativeFloat = Field(
        default=0.0,
        description="Penalty on the mean squared norm of the linear item features, growing with D from 384.",
    )
    common_l2: NonNegativeFloat = Field(
        default=0.02,
        description="Penalty on its squared norm, growing with D from 384, for each loss the common reward "
        "stands in.",
    )
    head_rate: PositiveFloat = Field(
        default=3.0, description="Learning rate of the linear heads, times recipe.lr."
    )


@dataclass(frozen=True)
class Belief:
    """What a model believes of users; X are any leading axes, such as contexts drawn of the same users."""

    mean_XBL: Tensor
    log_var_XBL: Tensor
    """The Gaussian's mean and log variance."""
    center_XBL: Tensor
    """The latent that judges."""
    sample_SXBL: Tensor
    """Latents that might be the user's."""
    kl_XB: Tensor
    """From N(0, I), nats."""


C = TypeVar("C", bound=LatentConfig)


class LatentRewardModel(RewardModel, Generic[C]):
    """r(e, z) = b·e + z's part, z ~ q(z | the user's comparisons), trained by the ELBO.

    −E_q[log σ(r(e⁺, z) − r(e⁻, z))] + β·KL(q ‖ N(0, I)). A factored decoder's part is a(z)·h(e) with linear h
    and a(0) = 0; an MLP's starts with the layer h. The item features are (h(e), b·e).
    """

    config: C
    noise_SL: Tensor

    def __init__(self, config: C, dims: Dims, latent: int, features: int, samples: int) -> None:
        """Start with small random features and no common reward.

        Args:
            config: of the method.
            dims: of the data.
            latent: L.
            features: M, width of h(e).
            samples: S, latents behind what the model estimates by sampling.
        """
        super().__init__(dims)
        self.config = config
        self.factored = self.uncertain = config.decoder == "factored"
        common_D = torch.zeros(dims.embedding)
        if config.population:
            self.common_D = nn.Parameter(common_D)
        else:
            self.register_buffer("common_D", common_D)
        spread = (0.3 if self.factored else 1.0) / math.sqrt(dims.embedding)
        self.features_DM = nn.Parameter(spread * torch.randn(dims.embedding, features))
        self.register_buffer("noise_SL", torch.randn(samples, latent))
        self.dropout = nn.Dropout(config.dropout)

    def make_posterior(self, width: int, latent: int) -> ProductPosterior | AttentionPosterior:
        """Return the posterior that the configuration names, for tokens of `width`."""
        if self.config.posterior == "product":
            return ProductPosterior(width, self.config.hidden, latent, self.config.log_precision)
        return AttentionPosterior(width, latent, self.config.clamp)

    @abstractmethod
    def tell(self, chosen_ND: Tensor, rejected_ND: Tensor, chosen_NF: Tensor, rejected_NF: Tensor) -> Tensor:
        """Return evidence_NE from the embeddings of comparisons and their item features."""

    @abstractmethod
    def believe(self, evidence_BPE: Tensor, mask_XBP: Tensor) -> Belief:
        """Return the posterior of each user; latents are sampled anew in training, and fixed otherwise."""

    @abstractmethod
    def user(self, belief: Belief) -> Tensor:
        """Return user_XBZ to judge with."""

    @abstractmethod
    def sampled_user(self, belief: Belief) -> Tensor:
        """Return user_XBZ of one sampled latent."""

    @abstractmethod
    def decode(self, feature_BNM: Tensor, user_XBZ: Tensor) -> Reward:
        """Return z's part of the reward, X·B × N."""

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the features h(e) and the common reward."""
        return self.project(emb_ND, torch.cat([self.features_DM.mT, self.common_D.unsqueeze(0)]))

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return what the encoder sees of a comparison."""
        return self.tell(chosen_ND, rejected_ND, self.item(chosen_ND), self.item(rejected_ND))

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return the user vectors of the posteriors."""
        return self.user(self.believe(evidence_BPE, mask_BP))

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return the common reward and z's part; a factored decoder knows its variance."""
        part = self.decode(item_BNF[..., :-1], user_BZ)
        return Reward(item_BNF[..., -1] + part.mean_BN, part.var_BN)

    def margin(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return mean and variance of the reward difference."""
        if self.factored:
            return self.reward(chosen_BNF - rejected_BNF, user_BZ)
        return Reward(self.reward(chosen_BNF, user_BZ).mean_BN - self.reward(rejected_BNF, user_BZ).mean_BN)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the negative ELBO, the common reward's own loss and the penalties."""
        config, target = self.config, episodes.target
        chosen_BPF, rejected_BPF = self.item(target.chosen_BPD), self.item(target.rejected_BPD)
        if config.draws:
            evidence_BPE = self.tell(target.chosen_BPD, target.rejected_BPD, chosen_BPF, rejected_BPF)
            context_RBP, scored_RBP = draw_contexts(target.mask_BP, config.draws, config.max_context)
            if not config.disjoint:
                scored_RBP = target.mask_BP.expand_as(context_RBP)
        else:
            evidence_BPE = self.encode(episodes.context)
            context_RBP, scored_RBP = episodes.context.mask_BP.unsqueeze(0), target.mask_BP.unsqueeze(0)
        belief = self.believe(evidence_BPE, context_RBP)
        # An exact variance attenuates the margin; where there is none, the expectation is one sample's.
        user_RBZ = self.user(belief) if self.exact() else self.sampled_user(belief)
        margin = self.margin(chosen_BPF, rejected_BPF, user_RBZ)
        var_XP = None if margin.var_BN is None else margin.var_BN.flatten(0, 1)
        flat = Reward(margin.mean_BN.flatten(0, 1), var_XP)
        nll = preference_loss(flat, scored_RBP.flatten(0, 1))
        kl = belief.kl_XB.clamp_min(config.free_nats).mean()
        total = nll + config.kl * anneal(progress, config.cycles) * kl
        parts = {"nll": nll, "kl": kl}
        for name, weight, value in self.further(evidence_BPE, context_RBP, belief):
            total, parts[name] = total + weight * value, value
        if config.population:
            common = Reward(chosen_BPF[..., -1] - rejected_BPF[..., -1])
            parts["population"] = preference_loss(common, target.mask_BP)
            total = total + config.population * parts["population"]
            total = total + (1 + config.population) * config.common_l2 * self.ridge(self.common_D)
        total = total + config.basis_l2 * self.ridge(self.features_DM) / self.features_DM.shape[1]
        return Loss(total, {name: part.detach() for name, part in parts.items()})

    def exact(self) -> bool:
        """Return whether training uses the reward's variance instead of a sampled latent."""
        return self.factored

    def further(
        self, evidence_BPE: Tensor, mask_XBP: Tensor, belief: Belief
    ) -> Iterable[tuple[str, float, Tensor]]:
        """Yield name, weight and value of the losses that only one method has."""
        return ()

    def noise(self, like_XBL: Tensor) -> Tensor:
        """Return noise_SXBL: anew in training, fixed and the same for every user otherwise."""
        if self.training:
            return torch.randn(len(self.noise_SL), *like_XBL.shape, device=like_XBL.device)
        samples, latent = self.noise_SL.shape
        return self.noise_SL.view(samples, *[1] * (like_XBL.ndim - 1), latent).expand(-1, *like_XBL.shape)

    def latent(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Latent:
        """Return the users' posteriors."""
        belief = self.believe(evidence_BPE, mask_BP)
        return Latent(belief.center_XBL, belief.mean_XBL, belief.log_var_XBL.exp(), belief.kl_XB)

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return linear heads with their own rate, and the rest."""
        fast, decay = self.config.head_rate * recipe.lr, recipe.weight_decay
        settings = {"common_D": (fast, 0.0)} | ({"features_DM": (fast, decay)} if self.factored else {})
        heads = {name: value for name, value in self.named_parameters() if name in settings}
        for name, parameter in heads.items():
            lr, own_decay = settings[name]
            yield {"params": [parameter], "lr": lr, "weight_decay": own_decay}
        rest = [parameter for name, parameter in self.named_parameters() if name not in heads]
        yield {"params": rest, "lr": recipe.lr, "weight_decay": decay}
