"""FedVPA-GP: a latent per user, pulled towards the peers it chooses and towards orthogonal prototypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, preference_loss
from raypref.methods.contexts import draw_contexts
from raypref.methods.gaussians import kl_to_normal, precision, product
from raypref.methods.linear import LinearRewardModel
from raypref.methods.peers import assign, gumbel, kl_to_peers, peer_weights
from raypref.types import Dims, Episodes, Landscape, Latent, Loss, Peers, Reward


class FedVPAConfig(MethodConfig):
    """Federated variational preference alignment with a Gumbel-softmax prior, trained in one place."""

    citation: ClassVar[str] = "FedVPA-GP, arXiv 2605.30873 (ICML 2026)"

    type: Literal["fedvpa"] = "fedvpa"
    recipe: Recipe = Recipe(steps=600, users_per_step=64, targets=64, lr=3e-3, weight_decay=0.1, clip=10.0)
    head_rate: PositiveFloat = Field(
        default=3.0, description="Learning rate of the linear reward heads, times recipe.lr."
    )
    latent: PositiveInt = Field(default=32, description="L, width of the preference space; at least rank.")
    rank: PositiveInt = Field(default=16, description="r, linear features of an item that the latent weighs.")
    hidden: PositiveInt = Field(
        default=128, description="H, width of encoder and decoder; at least latent and twice rank."
    )
    features: int = Field(
        default=64, ge=0, description="Linear features of a pair that the encoder sees beside the residual's."
    )
    dropout: float = Field(default=0.2, ge=0, lt=1, description="Of the pair encoder's input.")
    base_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Chance that a training comparison is scored by its personal residual alone.",
    )
    pooling: Literal["product", "mean"] = Field(
        default="product",
        description="A user's Gaussian: the product of the comparisons' with N(0, 1), or their average.",
    )
    max_variance: PositiveFloat = Field(
        default=0.05,
        description="Cap of the latent's variance, σ_max²; near 1 the samples' noise drowns preferences.",
    )
    draws: PositiveInt = Field(
        default=4, description="R, splits into context and targets of each user in a step."
    )
    max_context: PositiveInt = Field(default=32, description="Most comparisons in a training context.")
    prior: Literal["mixture", "normal"] = Field(
        default="mixture", description="What the KL pulls users towards: chosen peers, or N(0, 1) (FedVPL)."
    )
    kl: NonNegativeFloat = Field(
        default=1e-5, description="β, weight of the KL in nats; from about 1e-3 on latents collapse."
    )
    peers: PositiveInt = Field(
        default=64, description="Slots of a user's learned choice of peers; peers share slots beyond that."
    )
    temperature: PositiveFloat = Field(
        default=1.0, description="τ of the Gumbel softmax over peers at the start."
    )
    final_temperature: PositiveFloat = Field(default=0.5, description="τ at the end.")
    orthogonal: NonNegativeFloat = Field(
        default=1e-4, description="λ, weight of the pull towards prototypes; with 0 there are none."
    )
    prototypes: PositiveInt = Field(default=2, description="M, groups of users; at most latent.")
    orthonormal: PositiveFloat = Field(
        default=1.0, description="γ, weight in that of keeping the prototypes orthonormal."
    )
    common_l2: NonNegativeFloat = Field(
        default=0.02, description="Penalty on the squared norm of the common reward, growing with D from 384."
    )
    samples: PositiveInt = Field(default=16, description="S, samples behind a reward's variance.")
    evidence_gain: PositiveFloat = Field(
        default=10.0, description="At the start a pair's mean is this times its features."
    )
    log_precision: float = Field(default=-3.0, description="Log precision of one comparison at the start.")
    head_spread: PositiveFloat = Field(default=0.3, description="Residual heads start as N(0, this²/D).")

    @model_validator(mode="after")
    def _wide_enough(self) -> FedVPAConfig:
        if self.latent < max(self.rank, self.prototypes):
            raise ValueError("latent must be at least rank and prototypes")
        if self.hidden < max(self.latent, 2 * self.rank):
            raise ValueError("hidden must be at least latent and twice rank")
        return self

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a start below the variance's cap where nothing is multiplied to get there."""
        return {"log_precision": 4.0, "evidence_gain": 1.0} if raw.get("pooling") == "mean" else {}

    def build(self, dims: Dims) -> FedVPA:
        """Return an untrained model."""
        return FedVPA(self, dims)


class FedVPA(LinearRewardModel):
    """r_u = b·e + (g(z_u) − g(0))·Ve, z_u ~ q(z | comparisons of u) (FedVPA-GP, arXiv 2605.30873).

    b is a Bradley–Terry head with a loss of its own, frozen to the rest: a user nothing is known of has
    z = 0 and the reward b·e. An MLP maps each comparison to a Gaussian; their product with N(0, 1) is q_u.
    The MLP g turns a latent into weights of r linear features: the residual is antisymmetric in the pair.

    Training minimises −log σ(margin at a sample of z) + β·KL(q_u ‖ Σ_j w_uj q_j) + λ·L_ortho. The peers j are
    the other users of the step with all their comparisons, or who `Episodes.peers` says, and
    w_u = softmax((log π_u + Gumbel)/τ) with a learned row π_u per seen user, which no other's loss reads.
    L_ortho = ‖z − p_y(u)‖² + γ‖PPᵀ − I‖², P the M prototypes; y assigns the users of the step to prototypes
    in equal shares, or is what `Episodes.peers` says, as the paper's server assigns all clients.

    Evidence is (λ_i, λ_i·m_i), E = 2L. The user vector is (μ_u, σ_u²), Z = 2L; item features are b·e and Ve.
    What the paper leaves open, and what is chosen here: latents come from comparisons other than those they
    score; the encoder sees b·e, Ve and a few more linear features of e⁺ − e⁻ (the raw difference overfits);
    training starts where m_i is proportional to Ve and g is close to the identity.
    """

    noise_SL: Tensor

    def __init__(self, config: FedVPAConfig, dims: Dims) -> None:
        """Start from a linear rule over random features, and orthonormal prototypes."""
        super().__init__(dims)
        self.config = config
        latent, rank, hidden = config.latent, config.rank, config.hidden
        spread = dims.embedding**-0.5
        self.common_D = nn.Parameter(torch.zeros(dims.embedding))
        self.heads_RD = nn.Parameter(config.head_spread * spread * torch.randn(rank, dims.embedding))
        self.features_MD = nn.Parameter(spread * torch.randn(config.features, dims.embedding))
        self.hidden = nn.Linear(1 + rank + config.features, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_precision = nn.Linear(hidden, latent)
        self.dropout = nn.Dropout(config.dropout)
        self.widen = nn.Linear(latent, hidden)
        self.narrow = nn.Linear(hidden, rank, bias=False)
        self.peers = config.prior == "mixture" or bool(config.orthogonal)
        if config.prior == "mixture":
            self.user_rows = ("log_peers_UJ",)
            self.log_peers_UJ = nn.Parameter(torch.zeros(dims.users, config.peers))
        if config.orthogonal:
            self.prototypes_ML = nn.Parameter(torch.linalg.qr(torch.randn(latent, config.prototypes))[0].mT)
        self.register_buffer("noise_SL", torch.randn(config.samples, latent))
        with torch.no_grad():
            eye = torch.eye(rank)
            self.hidden.bias.zero_()
            self.hidden.weight[: 2 * rank] = 0.0
            self.hidden.weight[: 2 * rank, 1 : 1 + rank] = torch.cat([eye, -eye])
            self.mean.bias.zero_()
            self.mean.weight *= 0.1
            # softplus(x) − softplus(−x) = x
            self.mean.weight[:rank, : 2 * rank] = config.evidence_gain * torch.cat([eye, -eye], 1)
            self.log_precision.weight.zero_()
            self.log_precision.bias.fill_(config.log_precision)
            self.widen.weight.mul_(0.1).add_(0.5 * torch.eye(hidden, latent))
            self.narrow.weight.mul_(0.1).add_(2.0 * torch.eye(rank, hidden))

    def item(self, emb_ND: Tensor) -> Tensor:
        """Return the common reward and the r features that a latent weighs, F = 1 + r."""
        return self.project(emb_ND, torch.cat([self.common_D.unsqueeze(0), self.heads_RD]))

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return precision and precision·mean of the comparison's Gaussian."""
        return self._encode_pair(self._pair(chosen_ND, rejected_ND))

    def _pair(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return the differences of the item features, then the features only the encoder sees."""
        heads_FD = torch.cat([self.common_D.unsqueeze(0), self.heads_RD, self.features_MD])
        return self.project_difference(chosen_ND, rejected_ND, heads_FD)

    def _encode_pair(self, pair_NF: Tensor) -> Tensor:
        pair_NF = torch.cat([pair_NF[..., :1].detach(), pair_NF[..., 1:]], -1)
        hidden_NH = F.softplus(self.hidden(self.dropout(pair_NF)))
        precision_NL = precision(self.log_precision(hidden_NH).float())
        return torch.cat([precision_NL, precision_NL * self.mean(hidden_NH).float()], -1)

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return mean and variance of the user's Gaussian."""
        if self.config.pooling == "product":
            mean_BL, var_BL = product(evidence_BPE, mask_BP, 1.0)
        else:
            mean_BL, var_BL = average(evidence_BPE, mask_BP)
        return torch.cat([mean_BL, var_BL.clamp_max(self.config.max_variance)], -1)

    def weights(self, z_BL: Tensor) -> Tensor:
        """Return g(z) − g(0), the weights of the r features under a latent."""
        hidden_BH = torch.tanh(self.widen(z_BL)) - torch.tanh(self.widen.bias)
        return self.narrow(hidden_BH).float()

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return the reward at the mean latent, and its variance over samples of the latent."""
        mean_BL, var_BL = user_BZ.chunk(2, -1)
        feature_BNR = item_BNF[..., 1:]
        mean_BN = item_BNF[..., 0] + (feature_BNR @ self.weights(mean_BL).unsqueeze(-1)).squeeze(-1)
        weights_BSR = self.weights(mean_BL.unsqueeze(1) + var_BL.sqrt().unsqueeze(1) * self.noise_SL)
        spread_BSR = weights_BSR - weights_BSR.mean(1, keepdim=True)
        return Reward(mean_BN, (feature_BNR @ spread_BSR.mT).square().mean(-1))

    def steer(self, place_BL: Tensor) -> Tensor:
        """Return users with these latents: another z is another preference."""
        return torch.cat([place_BL, torch.zeros_like(place_BL)], -1)

    def prototype_users(self) -> Tensor:
        """Return user_MZ, one user a prototype.

        Raises:
            ValueError: the model was configured without prototypes.
        """
        if not self.config.orthogonal:
            raise ValueError("no prototypes: method.orthogonal is 0")
        return self.steer(self.prototypes_ML)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the BT losses of sampled latents and of the common reward, the KL and the prototypes'."""
        config, target = self.config, episodes.target
        pair_BPF = self._pair(target.chosen_BPD, target.rejected_BPD)
        common_BP, feature_BPR = pair_BPF[..., 0], pair_BPF[..., 1 : 1 + config.rank]
        evidence_BPE = self._encode_pair(pair_BPF)
        context_RBP, scored_RBP = draw_contexts(target.mask_BP, config.draws, config.max_context)
        user_RBZ = torch.stack([self.infer(evidence_BPE, context_BP) for context_BP in context_RBP])
        mean_RBL, var_RBL = user_RBZ.chunk(2, -1)
        z_RBL = mean_RBL + var_RBL.sqrt() * torch.randn_like(mean_RBL)
        base_RBP = common_BP.detach().expand_as(scored_RBP)
        if self.training:
            base_RBP = base_RBP * (torch.rand_like(base_RBP) >= config.base_dropout)
        margin_RBP = base_RBP + (feature_BPR @ self.weights(z_RBL).unsqueeze(-1)).squeeze(-1)
        personal = preference_loss(Reward(margin_RBP.flatten(0, 1)), scored_RBP.flatten(0, 1))
        population = preference_loss(Reward(common_BP), target.mask_BP)
        penalty = config.common_l2 * self.ridge(self.common_D)
        # What the users would upload: their Gaussians with all they have said.
        upload_BZ = self.infer(evidence_BPE, target.mask_BP).detach()
        peers = episodes.peers or self._company(upload_BZ, episodes.user_B)
        divergence = self._kl(z_RBL, user_RBZ, peers, episodes, progress)
        parts = {"personal": personal, "population": population, "kl": divergence, "penalty": penalty}
        total = personal + population + config.kl * divergence + penalty
        if config.orthogonal:
            known_B = peers.group_B >= 0
            away_RB = (z_RBL - self.prototypes_ML[peers.group_B.clamp_min(0)]).square().sum(-1)
            attraction = (away_RB * known_B).sum() / (config.draws * known_B.sum().clamp_min(1))
            gram_MM = self.prototypes_ML @ self.prototypes_ML.mT
            crossing = (gram_MM - torch.eye(len(gram_MM), device=gram_MM.device)).square().sum()
            total = total + config.orthogonal * (attraction + config.orthonormal * crossing)
            parts |= {"attraction": attraction, "crossing": crossing}
        return Loss(total, {name: part.detach() for name, part in parts.items()})

    def _company(self, upload_BZ: Tensor, user_B: Tensor) -> Peers:
        """Return the users of a step as one another's peers, grouped in equal shares."""
        group_B = torch.full_like(user_B, -1)
        if self.config.orthogonal:
            group_B = assign(upload_BZ.chunk(2, -1)[0], self.prototypes_ML.detach())
        return Peers(upload_BZ, user_B, group_B)

    def _kl(
        self, z_RBL: Tensor, user_RBZ: Tensor, peers: Peers, episodes: Episodes, progress: float
    ) -> Tensor:
        mean_RBL, var_RBL = user_RBZ.chunk(2, -1)
        if self.config.prior == "normal":
            return kl_to_normal(mean_RBL, var_RBL).mean()
        start, end = self.config.temperature, self.config.final_temperature
        user_B, user_C = episodes.user_B, peers.user_C
        same_BC = (user_B.unsqueeze(1) == user_C) & (episodes.peers is None)
        log_weight_RBC = peer_weights(
            self.log_peers_UJ[user_B][:, user_C % self.config.peers],
            same_BC,
            gumbel(len(z_RBL), *same_BC.shape, device=z_RBL.device),
            start + (end - start) * progress,
        )
        peer_mean_CL, peer_var_CL = peers.vector_CZ.chunk(2, -1)
        return kl_to_peers(z_RBL, mean_RBL, var_RBL, peer_mean_CL, peer_var_CL, log_weight_RBC).mean()

    def latent(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Latent:
        """Return the users' Gaussians, and their KL from N(0, 1)."""
        mean_BL, var_BL = self.infer(evidence_BPE, mask_BP).chunk(2, -1)
        return Latent(mean_BL, mean_BL, var_BL, kl_to_normal(mean_BL, var_BL))

    def landscape(self, user_BZ: Tensor) -> Landscape:
        """Return the users' Gaussians and the prototypes, all in the preference space."""
        bases_ML = self.prototypes_ML.detach() if self.config.orthogonal else None
        mean_BL, var_BL = user_BZ.chunk(2, -1)
        return Landscape(mean_BL, var_BL, bases_ML)

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return heads with their own rate, peers and prototypes without decay, and the rest."""
        free = [getattr(self, name) for name in ("log_peers_UJ", "prototypes_ML") if hasattr(self, name)]
        taken = {id(parameter) for parameter in [self.heads_RD, self.common_D, *free]}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in taken]
        decay = recipe.weight_decay
        return [
            {"params": [self.heads_RD], "lr": self.config.head_rate * recipe.lr, "weight_decay": decay},
            {"params": [self.common_D], "lr": self.config.head_rate * recipe.lr, "weight_decay": 0.0},
            {"params": free, "lr": recipe.lr, "weight_decay": 0.0},
            {"params": rest, "lr": recipe.lr, "weight_decay": decay},
        ]


def average(natural_BPE: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Return the averages of each user's means and variances, as clients upload them; of none, N(0, 1)."""
    count_B1 = mask_BP.sum(1, keepdim=True)
    share_BP1 = (mask_BP / count_B1.clamp_min(torch.finfo(torch.float32).tiny)).unsqueeze(-1)
    precision_BPL, weighted_BPL = natural_BPE.chunk(2, -1)
    mean_BL = (share_BP1 * weighted_BPL / precision_BPL).sum(1)
    var_BL = (share_BP1 / precision_BPL).sum(1)
    return mean_BL, torch.where(count_B1 > 0, var_BL, torch.ones_like(var_BL))
