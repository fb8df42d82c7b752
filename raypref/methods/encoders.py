"""What the variational methods share: encoders of sets of comparisons, and the course of their KL."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raypref.methods.gaussians import precision

LEAK = 0.2
"""Negative slope of every LeakyReLU (VPL, arXiv 2408.10075)."""


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of these widths with LeakyReLU between them."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.LeakyReLU(LEAK)] if number else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def anneal(progress: float, cycles: int) -> float:
    """Return the share of the KL's weight: from 0.1 up to 1 along half a cosine, `cycles` times over."""
    place = (progress * cycles) % 1.0
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (place - 1.0)))


class AttentionPosterior(nn.Module):
    """A user's Gaussian from single-head self-attention over tokens, averaged (VPL, arXiv 2408.10075).

    softmax(QKᵀ/√T)·V averaged over the comparisons, then two linear heads, clamped. The average has no place
    for how many comparisons there were: one says as much as sixteen.
    """

    def __init__(self, width: int, latent: int, clamp: float) -> None:
        """Take tokens of `width`."""
        super().__init__()
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        # A key's bias adds the same to every score of a query, which the softmax ignores.
        self.key = nn.Linear(width, width, bias=False)
        self.mean, self.log_var = nn.Linear(width, latent), nn.Linear(width, latent)
        self.clamp = clamp

    def forward(self, token_BPT: Tensor, mask_XBP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_XBL and log_var_XBL; a user without tokens has the heads' biases."""
        smallest = torch.finfo(torch.float32).tiny
        weight_XBP = mask_XBP / mask_XBP.sum(-1, keepdim=True).clamp_min(smallest)
        score_BPP = self.query(token_BPT) @ self.key(token_BPT).mT / math.sqrt(token_BPT.shape[-1])
        # A weight is so many copies of the comparison; padding is never attended to.
        score_XBPP = score_BPP + weight_XBP.clamp_min(smallest).log().unsqueeze(-2)
        attended_XBPT = torch.softmax(score_XBPP, -1) @ self.value(token_BPT)
        pooled_XBT = (attended_XBPT * weight_XBP.unsqueeze(-1)).sum(-2)
        bound = self.clamp
        return self.mean(pooled_XBT).clamp(-bound, bound), self.log_var(pooled_XBT).clamp(-bound, bound)


class ProductPosterior(nn.Module):
    """A user's Gaussian as the product of one Gaussian a comparison and the prior N(0, I).

    Starts as the first step of Bayes for a linear reward under the logistic likelihood: a comparison pulls z
    along half its token, with a small precision. An MLP that starts near zero improves on both.
    """

    def __init__(self, width: int, hidden: int, latent: int, log_precision: float) -> None:
        """Take tokens of `width`; the first of them are the latent's own directions."""
        super().__init__()
        self.pull = nn.Linear(width, latent, bias=False)
        self.hidden = nn.Linear(width, hidden)
        self.heads = nn.Linear(hidden, 2 * latent)
        with torch.no_grad():
            self.pull.weight.zero_().fill_diagonal_(0.5)
            self.heads.weight.mul_(1e-3)
            self.heads.bias.zero_()[:latent] = log_precision

    def forward(self, token_BPT: Tensor, mask_XBP: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_XBL and log_var_XBL; a user without tokens has the prior."""
        log_precision_BPL, turn_BPL = self.heads(F.softplus(self.hidden(token_BPT))).float().chunk(2, -1)
        precision_BPL = precision(log_precision_BPL)
        pull_BPL = self.pull(token_BPT).float() + turn_BPL
        mask_XB1P = mask_XBP.unsqueeze(-2)
        precision_XBL = 1.0 + (mask_XB1P @ precision_BPL).squeeze(-2)
        return (mask_XB1P @ pull_BPL).squeeze(-2) / precision_XBL, -precision_XBL.log()
