"""The contract of every method: four cuts and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor, nn

from raypref.methods.projection import project, project_difference
from raypref.types import Dims, Episodes, Landscape, Latent, Loss, Pairs, Reward


class Recipe(BaseModel):
    """How a method is trained; a method's default recipe is its vetted setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt = Field(default=1000, description="Optimiser steps.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Course of the learning rate."
    )
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps over which the rate rises."
    )
    users_per_step: PositiveInt = Field(default=64, description="Users in a step, over all workers.")
    context: tuple[NonNegativeInt, NonNegativeInt] = Field(
        default=(0, 0), description="Fewest and most comparisons a user's context may hold in training."
    )
    targets: PositiveInt = Field(default=64, description="Most comparisons a user is scored on in a step.")
    lr: PositiveFloat = Field(
        default=1e-3,
        description="Peak learning rate of AdamW; heads that follow the width take 384 / D of it.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay of AdamW.")
    clip: PositiveFloat = Field(
        default=1.0, description="Largest gradient norm; longer ones are scaled down."
    )


class MethodConfig(BaseModel):
    """Base of every method's configuration, which adds a `type` that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    citation: ClassVar[str]
    """Where the method is published."""

    recipe: Recipe = Recipe()

    @classmethod
    def preset(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the defaults of the variant that `raw` names, where they are not the method's own.

        What `raw` gives comes before them; a recipe may be partial in both.
        """
        return {}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        preset, given = cls.preset(raw), raw.get("recipe", {})
        if isinstance(given, Mapping):
            default: Recipe = cls.model_fields["recipe"].default
            given = {**default.model_dump(), **preset.get("recipe", {}), **given}
        return {**preset, **raw, "recipe": given}

    @property
    def needs_prompts(self) -> bool:
        """Whether each embedding must be followed by that of its prompt alone, D = twice the embedder's."""
        return False

    @abstractmethod
    def build(self, dims: Dims) -> RewardModel:
        """Return an untrained model; draws from torch's global random state."""


VETTED_WIDTH = 384
"""Dimensions up to which penalties and learning rates of heads are what the configuration says."""


class RewardModel(nn.Module, ABC):
    """A personal reward, cut into two towers: r_u(x, y) = reward(item(e(x, y)), infer(evidence of u)).

    `item` and `evidence` do all work that is D wide and know no user; `infer` and `reward` know no D.
    Embeddings may come in any float type and raw scale: `standardise` maps them to float32 of unit scale.
    """

    uncertain: bool = True
    """Whether `reward` and `margin` return a variance."""

    user_rows: tuple[str, ...] = ()
    """Parameters with one row per seen user that the loss reads as `parameter[episodes.user_B]` alone: each
    worker then holds the rows of its own users, and `user_B` counts among them."""

    peers: bool = False
    """Whether the loss looks at other users' vectors, and at the groups that users are put in by them."""

    heads: ClassVar[tuple[str, ...]] = ()
    """Parameters as wide as embeddings whose learning rate falls as 1/D, from 384 on; a method names them
    where that was measured to help. They come first in the module."""

    center_D: Tensor
    scale: Tensor

    def __init__(self, dims: Dims) -> None:
        """Create the embedding statistics; `fit_scale` fills them."""
        super().__init__()
        self.dims = dims
        self.register_buffer("center_D", torch.zeros(dims.embedding))
        self.register_buffer("scale", torch.ones(()))

    def fit_scale(self, sample_ND: Tensor) -> None:
        """Set the centre and the scale from a sample of embeddings: mean 0, mean square 1 over all D."""
        sample_ND = sample_ND.float()
        self.center_D.copy_(sample_ND.mean(0))
        spread = (sample_ND - self.center_D).square().mean().sqrt()
        self.scale.copy_(spread.clamp_min(torch.finfo(torch.float32).tiny))

    def standardise(self, emb_ND: Tensor) -> Tensor:
        """Return embeddings centred and divided by one scalar, float32."""
        return (emb_ND.float() - self.center_D) / self.scale

    def project(self, emb_ND: Tensor, heads_FD: Tensor) -> Tensor:
        """Return standardise(emb) @ heads.T, float32, at the cost of the product alone."""
        return project(emb_ND, heads_FD, self.center_D, self.scale)

    def project_difference(self, chosen_ND: Tensor, rejected_ND: Tensor, heads_FD: Tensor) -> Tensor:
        """Return project(chosen) − project(rejected)."""
        return project_difference(chosen_ND, rejected_ND, heads_FD, self.scale)

    def ridge(self, head: Tensor) -> Tensor:
        """Return the squared norm of D-wide heads as a penalty weighs it: times D / 384, from 384 on.

        An equally large reward of standardised embeddings has a squared norm that falls as 1/D; in narrower
        embeddings there is less to overfit.
        """
        return head.square().sum() * self._widening()

    def _widening(self) -> float:
        return max(1.0, self.dims.embedding / VETTED_WIDTH)

    @abstractmethod
    def item(self, emb_ND: Tensor) -> Tensor:
        """Return item_NF, the features of items that any user's reward needs."""

    @abstractmethod
    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        """Return evidence_NE, all that a comparison says about the user who made it."""

    @abstractmethod
    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        """Return user_BZ from each user's evidence; no evidence at all gives the population's user."""

    @abstractmethod
    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return mean and variance of each item's reward for each user."""

    @abstractmethod
    def margin(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return mean and variance of the reward difference; shared uncertainty cancels."""

    @abstractmethod
    def loss(self, episodes: Episodes, progress: float) -> Loss:
        """Return the training loss of a step; `progress` runs from 0 to 1 over the training."""

    def prime(self, seen: Iterable[Episodes]) -> None:
        """Set the start of training from seen users' comparisons, before the first step.

        Most methods start from what `build` drew and leave `seen` unread, which then costs nothing.

        Args:
            seen: all training comparisons of a bounded number of seen users as targets, without context; the
                same on every worker, and may be iterated again.
        """

    def settle(self, seen: Iterable[Pairs]) -> None:
        """Derive what inference needs beyond the trained parameters, such as a prior, from seen users.

        Called before the model is evaluated or saved; twice over the same users changes nothing.

        Args:
            seen: training comparisons of seen users, in batches; a method may read only as many as it needs.
        """

    def latent(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Latent | None:
        """Return the users' posteriors, to tell whether they say anything; None where there are none."""
        return None

    def doubt(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Tensor | None:
        """Return var_BN of reward differences under the user's posterior: what more comparisons can settle.

        The margin's variance, unless a method also means something else by that; None where nothing is known
        of users, or no posterior is kept.
        """
        return self.margin(chosen_BNF, rejected_BNF, user_BZ).var_BN

    def landscape(self, user_BZ: Tensor) -> Landscape | None:
        """Return users and bases in one space, to draw a map of; None where a method has no such space."""
        return None

    def steer(self, place_BL: Tensor) -> Tensor | None:
        """Return user_BZ of users who stand at places of the landscape, known without doubt.

        None where the method has no landscape.

        Raises:
            ValueError: nobody can stand there.
        """
        return None

    def parameter_groups(self, recipe: Recipe) -> Iterable[dict[str, Any]]:
        """Return AdamW's parameter groups; a method with parts of different scale overrides it.

        A step of Adam moves every weight by about the rate, whatever D. Along directions that embeddings
        share these moves add up, so a reward moves in proportion to D: the rate of `heads` falls as much, at
        as much decay a step, and equal rewards of embeddings with every coordinate repeated train equally.
        """
        heads = [parameter for name, parameter in self.named_parameters() if name in self.heads]
        rest = [parameter for name, parameter in self.named_parameters() if name not in self.heads]
        lr, decay, wider = recipe.lr, recipe.weight_decay, self._widening()
        return [
            {"params": heads, "lr": lr / wider, "weight_decay": decay * wider},
            {"params": rest, "lr": lr, "weight_decay": decay},
        ]

    def encode(self, pairs: Pairs) -> Tensor:
        """Return evidence_BPE of a padded batch; padding is encoded too, `infer` masks it."""
        return self.evidence(pairs.chosen_BPD, pairs.rejected_BPD)

    def forward(self, pairs: Pairs, user_BZ: Tensor) -> Reward:
        """Return the margin of each comparison: the uncut forward pass."""
        return self.margin(self.item(pairs.chosen_BPD), self.item(pairs.rejected_BPD), user_BZ)


def preference_loss(margin: Reward, mask_BP: Tensor) -> Tensor:
    """Return the mean over users of each user's mean −log σ(margin), variance-attenuated where there is one.

    Every user weighs the same (LoRe, arXiv 2504.14439); users without comparisons do not count.
    """
    nll_BP = -F.logsigmoid(margin.logit_BN().float()) * mask_BP
    weight_B = mask_BP.sum(1)
    per_user_B = nll_BP.sum(1) / weight_B.clamp_min(torch.finfo(torch.float32).tiny)
    return per_user_B.sum() / (weight_B > 0).sum().clamp_min(1)
