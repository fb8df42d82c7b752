"""SPL: swap-guided preference learning; a user's latent must turn around when their comparisons do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from raypref.methods.encoders import LEAK, AttentionPosterior, ProductPosterior, mlp
from raypref.methods.flow import PairedFlow
from raypref.methods.gaussians import log_density
from raypref.methods.latent import RELEASED_RECIPE, Belief, LatentConfig, LatentRewardModel
from raypref.types import Dims, Reward

RELEASED: Mapping[str, Any] = {
    "elements": "mlp",
    "posterior": "attention",
    "decoder": "mlp",
    "latent": 1024,
    "hidden": 1024,
    "kl": 3e-6,
    "free_nats": 1.0,
    "draws": 0,
    "population": 0.0,
    "dropout": 0.0,
    "recipe": RELEASED_RECIPE,
}
"""What the authors' code trains with."""


class SPLConfig(LatentConfig):
    """Swap-guided preference learning: a latent vector, through a flow that knows which way a user leans."""

    citation: ClassVar[str] = "SPL, arXiv 2603.12595 (ICLR 2026)"

    type: Literal["spl"] = "spl"
    elements: Literal["features", "mlp"] = Field(
        default="features",
        description="What the encoder sees of each answer: the item features that a factored decoder "
        "weighs, or an MLP of its own.",
    )
    flow: Literal["split", "joint", "none"] = Field(
        default="split",
        description="split: the flow's shift sees what a swap turns around, its scale what a swap leaves "
        "alone; joint: both see both; none: the Gaussian itself.",
    )
    layers: PositiveInt = Field(default=2, description="Layers of the flow.")
    modulation: bool = Field(default=True, description="Let the latent scale the decoder's features (FiLM).")
    guidance: NonNegativeFloat = Field(
        default=1e-5, description="λ, weight of the loss that makes a swapped user the opposite one."
    )
    guidance_spread: NonNegativeFloat = Field(
        default=0.1, description="η, share of the guidance that gives a swapped user the same variance."
    )
    latent: PositiveInt = Field(default=32, description="L, width of the latent vector; even.")
    samples: PositiveInt = Field(default=4, description="S, latents behind the KL and the reward's variance.")

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the settings of the released code for the released variant."""
        return RELEASED if raw.get("variant") == "released" else {}

    @model_validator(mode="after")
    def _fitting(self) -> SPLConfig:
        if self.latent % 2 or self.hidden % 2:
            raise ValueError("latent and hidden must be even: half of each belongs to one answer")
        if self.elements == "features" and self.decoder != "factored":
            raise ValueError("elements: features needs decoder: factored, which has features of that width")
        return self

    def build(self, dims: Dims) -> SPL:
        """Return an untrained model."""
        return SPL(self, dims)


class SPL(LatentRewardModel[SPLConfig]):
    """r(e, z_K), z_0 ~ q(z | the user's comparisons), z_K = flow(z_0; c_d, c_s) (SPL, arXiv 2603.12595).

    An encoder c(e) of width L/2 sees each answer alone; a comparison is [c(e⁺); c(e⁻)], and swapping it
    exchanges the halves. Averages over the comparisons of c_d = ½(c⁺ − c⁻), which a swap turns around, and
    of c_s = ½(c⁺ + c⁻), which it leaves alone, condition the flow. To the ELBO the guidance adds
    λ·[½(1 + cos(μ, μ_swap)) + η·½(1 − cos(ℓ, ℓ_swap))] of the Gaussian N(μ, e^ℓ), the
    swapped side held fixed.

    Released: MLP encoder, attention posterior, and as decoder an MLP of [e; z] whose last hidden layer z
    scales and shifts (FiLM). Robust, see `VPL`: c is the decoder's own linear h(e), the posterior a product,
    the reward b·e + a(z)·h(e), a(z) = (1 + ½ tanh MLP(z)) ⊙ Wz, and the averages are drawn to 0 by one
    comparison of nothing, so that a user nothing is known of has z = 0 and the common reward.

    Evidence is (c(e⁺), c(e⁻), b·e⁺ − b·e⁻). The user vector is z_K or, of a factored decoder, a(z_K) at the
    mean and at S samples.
    """

    posterior: ProductPosterior | AttentionPosterior

    def __init__(self, config: SPLConfig, dims: Dims) -> None:
        """Start with small random features and no common reward."""
        factored, latent, hidden = config.decoder == "factored", config.latent, config.hidden
        half, features = latent // 2, latent // 2 if factored else hidden // 2
        super().__init__(config, dims, latent, features, config.samples)
        if config.elements == "mlp":
            self.element = mlp([dims.embedding, hidden, hidden, half])
        self.posterior = self.make_posterior(latent + 1, latent)
        if isinstance(self.posterior, ProductPosterior):
            # To begin with only what a swap turns around pulls.
            self.posterior.pull.weight.data[:, half:].zero_()
        self.flow = PairedFlow(
            latent, half, config.layers if config.flow != "none" else 0, config.flow == "split"
        )
        if factored:
            self.weigh = nn.Linear(latent, features, bias=False)
            with torch.no_grad():
                self.weigh.weight.zero_().fill_diagonal_(1.0)
        else:
            self.condition, self.widen = nn.Linear(latent, features), nn.Linear(features, hidden)
            # A bias would cancel in every comparison.
            self.head = nn.Linear(hidden, 1, bias=False)
        if config.modulation:
            self.film = mlp([latent, 2 * hidden, features if factored else 2 * hidden])

    def tell(self, chosen_ND: Tensor, rejected_ND: Tensor, chosen_NF: Tensor, rejected_NF: Tensor) -> Tensor:
        """Return both answers' encodings and the common margin, E = L + 1."""
        common_N1 = chosen_NF[..., -1:] - rejected_NF[..., -1:]
        if self.config.elements == "features":
            return torch.cat([chosen_NF[..., :-1], rejected_NF[..., :-1], common_N1], -1)
        encoded = [self.element(self.standardise(emb_ND)) for emb_ND in (chosen_ND, rejected_ND)]
        return torch.cat([*encoded, common_N1], -1)

    @staticmethod
    def swap(evidence_BPE: Tensor) -> Tensor:
        """Return the evidence of the swapped comparisons; swapping twice gives it back."""
        half = evidence_BPE.shape[-1] // 2
        return torch.cat([evidence_BPE[..., half:-1], evidence_BPE[..., :half], -evidence_BPE[..., -1:]], -1)

    def gaussian(self, evidence_BPE: Tensor, mask_XBP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_XBL and log_var_XBL before the flow."""
        odd_BPC, even_BPC = self._parts(evidence_BPE)
        token_BPE = torch.cat([2.0 * odd_BPC, 2.0 * even_BPC, evidence_BPE[..., -1:]], -1)
        return self.posterior(self.dropout(token_BPE), mask_XBP)

    def believe(self, evidence_BPE: Tensor, mask_XBP: Tensor) -> Belief:
        """Return the Gaussian of each user, carried through the flow; its KL is estimated from S samples."""
        mean_XBL, log_var_XBL = self.gaussian(evidence_BPE, mask_XBP)
        smallest = torch.finfo(torch.float32).tiny
        nothing = 1.0 if self.config.posterior == "product" else smallest
        share_XBP = mask_XBP / (mask_XBP.sum(-1, keepdim=True) + nothing)
        odd_XBC, even_XBC = (
            (share_XBP.unsqueeze(-2) @ part_BPC).squeeze(-2) for part_BPC in self._parts(evidence_BPE)
        )
        start_SXBL = mean_XBL + (0.5 * log_var_XBL).exp() * self.noise(mean_XBL)
        # The mean goes through the flow as one more sample.
        all_YXBL = torch.cat([mean_XBL.unsqueeze(0), start_SXBL])
        contexts = (part.expand(len(all_YXBL), *part.shape) for part in (odd_XBC, even_XBC))
        end_YXBL, log_det_YXB = self.flow(all_YXBL, *contexts)
        log_q_SXB = log_density(start_SXBL, mean_XBL, log_var_XBL.exp()) - log_det_YXB[1:]
        zero, one = torch.zeros_like(mean_XBL), torch.ones_like(mean_XBL)
        kl_XB = (log_q_SXB - log_density(end_YXBL[1:], zero, one)).mean(0)
        return Belief(mean_XBL, log_var_XBL, end_YXBL[0], end_YXBL[1:], kl_XB)

    def _parts(self, evidence_BPE: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_d and c_s of each comparison."""
        half = self.config.latent // 2
        chosen_BPC, rejected_BPC, _ = evidence_BPE.split([half, half, 1], -1)
        return 0.5 * (chosen_BPC - rejected_BPC), 0.5 * (chosen_BPC + rejected_BPC)

    def weights(self, z_XBL: Tensor) -> Tensor:
        """Return a(z), what a factored decoder weighs the item features with."""
        weights_XBM = self.weigh(z_XBL)
        if self.config.modulation:
            weights_XBM = weights_XBM * (1.0 + 0.5 * torch.tanh(self.film(z_XBL)))
        return weights_XBM

    def user(self, belief: Belief) -> Tensor:
        """Return z_K, or the weights at the mean and at the samples."""
        if not self.factored:
            return belief.center_XBL
        sample_XBX = self.weights(belief.sample_SXBL).movedim(0, -2).flatten(-2)
        return torch.cat([self.weights(belief.center_XBL), sample_XBX], -1)

    def sampled_user(self, belief: Belief) -> Tensor:
        """Return one z_K; only for a decoder that is not factored."""
        return belief.sample_SXBL[0]

    def decode(self, feature_BNM: Tensor, user_XBZ: Tensor) -> Reward:
        """Return a·h and its variance over the samples, or the reward of the MLP."""
        if self.factored:
            weights_XBYM = user_XBZ.unflatten(-1, (1 + self.config.samples, -1))
            reward_XBNY = feature_BNM @ weights_XBYM.mT
            mean_XBN = reward_XBNY[..., 0]
            return Reward(mean_XBN, (reward_XBNY[..., 1:] - mean_XBN.unsqueeze(-1)).square().mean(-1))
        hidden = F.leaky_relu(feature_BNM + self.condition(user_XBZ).unsqueeze(-2), LEAK)
        hidden_XBNH = F.leaky_relu(self.widen(hidden), LEAK)
        if self.config.modulation:
            gain_XB1H, shift_XB1H = (0.5 * torch.tanh(self.film(user_XBZ))).unsqueeze(-2).chunk(2, -1)
            hidden_XBNH = (1.0 + gain_XB1H) * hidden_XBNH + shift_XB1H
        return Reward(self.head(F.leaky_relu(hidden_XBNH, LEAK)).squeeze(-1))

    def further(
        self, evidence_BPE: Tensor, mask_XBP: Tensor, belief: Belief
    ) -> Iterable[tuple[str, float, Tensor]]:
        """Yield the guidance: the swapped user, not trained through, as the opposite of the user."""
        with torch.no_grad():
            mean_XBL, log_var_XBL = self.gaussian(self.swap(evidence_BPE), mask_XBP)
        opposite_XB = 0.5 * (1.0 + F.cosine_similarity(belief.mean_XBL, mean_XBL, -1, 1e-6))
        spread_XB = 0.5 * (1.0 - F.cosine_similarity(belief.log_var_XBL, log_var_XBL, -1, 1e-6))
        guidance = (opposite_XB + self.config.guidance_spread * spread_XB).mean()
        yield "guidance", self.config.guidance, guidance
