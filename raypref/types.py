"""The values every method takes and gives, and the one legend of shape letters.

| letter | size of                                                              |
|--------|----------------------------------------------------------------------|
| B      | users in a batch                                                     |
| C      | other users: peers, or components of a mixture                       |
| P      | comparisons of a user, padded                                        |
| N      | items, or comparisons without a user axis                            |
| D      | embedding                                                            |
| F      | item features: what `item` keeps of an embedding                     |
| E      | evidence: what `evidence` keeps of a comparison                      |
| Z      | user vector: what `infer` makes of a user's evidence                 |
| K      | reward bases                                                         |
| H      | hidden layer                                                         |
| L      | latent preference space                                              |
| S      | samples or prior particles                                           |
| U      | all users of a table                                                 |

A name ends in its shape, slowest axis first: `scores_BN` has one row a user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dims:
    """What a model must know about the data before it can be built."""

    embedding: int
    """D, the width of an embedding."""
    users: int
    """U, the number of seen users: rows of the user table of a direct method."""


@dataclass(frozen=True)
class Pairs:
    """A padded batch of comparisons: chosen over rejected, per user."""

    chosen_BPD: Tensor
    rejected_BPD: Tensor
    mask_BP: Tensor
    """0 where padded, elsewhere the weight of the comparison (1 unless the data weighs it)."""

    def swap(self) -> Pairs:
        """Return the same comparisons judged the other way round; swapping twice gives them back."""
        return Pairs(self.rejected_BPD, self.chosen_BPD, self.mask_BP)

    def to(self, device: torch.device) -> Pairs:
        """Return a copy on `device`."""
        return Pairs(
            self.chosen_BPD.to(device, non_blocking=True),
            self.rejected_BPD.to(device, non_blocking=True),
            self.mask_BP.to(device, non_blocking=True),
        )

    @property
    def comparisons(self) -> int:
        """Number of comparisons that are not padding."""
        return int(torch.count_nonzero(self.mask_BP))


@dataclass(frozen=True)
class Peers:
    """What a user who trains alone is told of others (`RewardModel.peers`): never their comparisons."""

    vector_CZ: Tensor
    """User vectors of C others, none of them a user of the step."""
    user_C: Tensor
    """Number of each of them, the same in every step (int64)."""
    group_B: Tensor
    """Group of each user of the step, -1 where it is not known yet (int64)."""

    def to(self, device: torch.device) -> Peers:
        """Return a copy on `device`."""
        return Peers(self.vector_CZ.to(device), self.user_C.to(device), self.group_B.to(device))


@dataclass(frozen=True)
class Episodes:
    """One training step: what `infer` may see of each user, and what the loss scores. Disjoint."""

    context: Pairs
    target: Pairs
    user_B: Tensor
    """Row of each user in the table of seen users (int64)."""
    peers: Peers | None = None
    """Who the others are; None where they are the users of the step."""

    def to(self, device: torch.device) -> Episodes:
        """Return a copy on `device`."""
        return Episodes(
            self.context.to(device),
            self.target.to(device),
            self.user_B.to(device, non_blocking=True),
            self.peers and self.peers.to(device),
        )


@dataclass(frozen=True)
class Loss:
    """What a training step minimises, and the parts that explain it."""

    total: Tensor
    """Scalar, nats."""
    parts: dict[str, Tensor]
    """Detached scalars to log, by name."""


@dataclass(frozen=True)
class Reward:
    """A reward, or the difference of two, with what the model does not know about it."""

    mean_BN: Tensor
    var_BN: Tensor | None = None
    """Variance, squared reward units; None where the method has no uncertainty."""
    link_BN: Tensor | None = None
    """Logit of a difference's probability where the method has a link of its own; None for MacKay's."""

    def logit_BN(self) -> Tensor:
        """Return the logit of the probability that the difference is positive.

        The method's own link, else MacKay's approximation of E[σ(Δ)], Δ ~ N(mean, var):
        mean / √(1 + π·var/8) (VRF, arXiv 2604.00997).
        """
        if self.link_BN is not None:
            return self.link_BN
        if self.var_BN is None:
            return self.mean_BN
        return self.mean_BN / torch.sqrt(1.0 + (math.pi / 8.0) * self.var_BN)

    def probability_BN(self) -> Tensor:
        """Return the probability that the difference is positive."""
        return torch.sigmoid(self.logit_BN())


@dataclass(frozen=True)
class Landscape:
    """Users and reward bases in the one space where a method compares them; for maps, not for scores."""

    mean_BL: Tensor
    """Where each user is."""
    var_BL: Tensor | None = None
    """Variance of each coordinate; None where the method has no uncertainty about users."""
    bases_KL: Tensor | None = None
    """Where the bases are; None where the space has none."""


@dataclass(frozen=True)
class Latent:
    """Users' posteriors, as the diagnostics of collapse look at them."""

    code_BL: Tensor
    """What a unit says of each user: active is a unit that differs between users."""
    mean_BL: Tensor
    """Mean of each user's Gaussian."""
    var_BL: Tensor
    """Its variance."""
    kl_B: Tensor
    """KL from the prior, nats."""
