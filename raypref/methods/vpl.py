"""VPL: variational preference learning; a user is a latent vector that conditions the reward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from raypref.methods.encoders import LEAK, AttentionPosterior, ProductPosterior, mlp
from raypref.methods.gaussians import kl_to_normal
from raypref.methods.latent import RELEASED_RECIPE, Belief, LatentConfig, LatentRewardModel
from raypref.types import Dims, Landscape, Reward

RELEASED: Mapping[str, Any] = {
    "pair": "concat",
    "posterior": "attention",
    "decoder": "mlp",
    "latent": 512,
    "hidden": 512,
    "normalise": True,
    "kl": 3e-6,
    "draws": 0,
    "population": 0.0,
    "dropout": 0.0,
    "recipe": RELEASED_RECIPE,
}
"""What the authors' code trains with."""


class VPLConfig(LatentConfig):
    """Variational preference learning: a latent vector a user, inferred from a set of comparisons."""

    citation: ClassVar[str] = "VPL, arXiv 2408.10075 (NeurIPS 2024)"

    type: Literal["vpl"] = "vpl"
    pair: Literal["features", "difference", "concat"] = Field(
        default="features",
        description="What the encoder sees of a comparison: the difference of the item features, of the "
        "embeddings, or both embeddings.",
    )
    latent: PositiveInt = Field(default=16, description="L, width of the latent vector.")
    normalise: bool = Field(
        default=False, description="Scale the latents sampled in training to norm √L, as released."
    )

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the settings of the released code for the released variant."""
        return RELEASED if raw.get("variant") == "released" else {}

    def build(self, dims: Dims) -> VPL:
        """Return an untrained model."""
        return VPL(self, dims)


class VPL(LatentRewardModel[VPLConfig]):
    """r(e, z), z ~ q(z | the user's comparisons), trained by the ELBO (VPL, arXiv 2408.10075).

    −E_q[log σ(r(e⁺, z) − r(e⁻, z))] + β·KL(q ‖ N(0, I)). Released: an MLP turns [e⁺; e⁻] into a token,
    attention averages the tokens into q, and an MLP of [e; z] is the reward; z is q's mean when judging.

    Where preferences are few and noisy that latent is ignored. What keeps it alive, each a setting: q is a
    product of one Gaussian a comparison, so it sharpens with evidence; it is asked about comparisons it has
    not seen; a common reward b·e takes what users share, so that z carries only how they differ; the reward
    is b·e + z·h(e) with linear h, and the encoder sees h(e⁺) − h(e⁻), so that no second D-wide network can
    memorise. The reward's variance is then exact, Σ_l h_l² var_l.

    Evidence is the token. The user vector is (mean, variance), Z = 2L.
    """

    posterior: ProductPosterior | AttentionPosterior

    def __init__(self, config: VPLConfig, dims: Dims) -> None:
        """Start with small random features and no common reward."""
        factored, latent, hidden = config.decoder == "factored", config.latent, config.hidden
        features = latent if factored else hidden
        super().__init__(config, dims, latent, features, samples=1)
        if not factored:
            self.condition = nn.Linear(latent, hidden)
            # A bias would cancel in every comparison.
            last = nn.Linear(hidden, 1, bias=False)
            self.layers = nn.Sequential(
                nn.LeakyReLU(LEAK), nn.Linear(hidden, hidden), nn.LeakyReLU(LEAK), last
            )
        width = features + 1
        if config.pair != "features":
            width = latent
            self.pair = mlp([dims.embedding * (2 if config.pair == "concat" else 1), hidden, hidden, latent])
        self.posterior = self.make_posterior(width, latent)

    def tell(self, chosen_ND: Tensor, rejected_ND: Tensor, chosen_NF: Tensor, rejected_NF: Tensor) -> Tensor:
        """Return the token of a comparison: E = L, or M + 1 where the encoder sees item features."""
        if self.config.pair == "features":
            return chosen_NF - rejected_NF
        chosen_ND, rejected_ND = self.standardise(chosen_ND), self.standardise(rejected_ND)
        if self.config.pair == "difference":
            return self.pair(chosen_ND - rejected_ND)
        return self.pair(torch.cat([chosen_ND, rejected_ND], -1))

    def believe(self, evidence_BPE: Tensor, mask_XBP: Tensor) -> Belief:
        """Return the Gaussian of each user, and samples of it."""
        mean_XBL, log_var_XBL = self.posterior(self.dropout(evidence_BPE), mask_XBP)
        sample_SXBL = mean_XBL + (0.5 * log_var_XBL).exp() * self.noise(mean_XBL)
        if self.config.normalise:
            norm_SXB1 = sample_SXBL.norm(dim=-1, keepdim=True)
            sample_SXBL = math.sqrt(self.config.latent) * sample_SXBL / norm_SXB1
        kl_XB = kl_to_normal(mean_XBL, log_var_XBL.exp())
        return Belief(mean_XBL, log_var_XBL, mean_XBL, sample_SXBL, kl_XB)

    def exact(self) -> bool:
        """Return whether the expectation over latents is in closed form."""
        return self.factored and not self.config.normalise

    def user(self, belief: Belief) -> Tensor:
        """Return mean and variance."""
        return torch.cat([belief.center_XBL, belief.log_var_XBL.exp()], -1)

    def sampled_user(self, belief: Belief) -> Tensor:
        """Return one latent, without doubt."""
        return torch.cat([belief.sample_SXBL[0], torch.zeros_like(belief.mean_XBL)], -1)

    def decode(self, feature_BNM: Tensor, user_XBZ: Tensor) -> Reward:
        """Return z·h and its variance, or the MLP's reward at the mean."""
        mean_XBL, var_XBL = user_XBZ.chunk(2, -1)
        if not self.factored:
            return Reward(self.layers(feature_BNM + self.condition(mean_XBL).unsqueeze(-2)).squeeze(-1))
        return Reward(
            (feature_BNM @ mean_XBL.unsqueeze(-1)).squeeze(-1),
            (feature_BNM.square() @ var_XBL.unsqueeze(-1)).squeeze(-1),
        )

    def landscape(self, user_BZ: Tensor) -> Landscape:
        """Return the users' Gaussians."""
        mean_BL, var_BL = user_BZ.chunk(2, -1)
        return Landscape(mean_BL, var_BL)

    def steer(self, place_BL: Tensor) -> Tensor:
        """Return users whose Gaussian is that point."""
        return torch.cat([place_BL, torch.zeros_like(place_BL)], -1)
