"""P-IAF: an inverse autoregressive flow whose shift and scale see different halves of the context (SPL)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHIFT_BOUND, LOG_SCALE_BOUND = 1.0, 5.0
"""A layer's shift and log scale stay within plus and minus these (SPL, arXiv 2603.12595)."""


class Autoregressive(nn.Module):
    """z_L, context_C -> out_L, where out_i depends on the context and on z_j that come before i.

    A masked MLP (MADE, Germain et al. 2015) with hidden layers of 2L, 2L and L; the order is `rank_L`.
    """

    def __init__(self, rank_L: Tensor, context: int, bias: bool) -> None:
        """Without biases a zero context and a zero z give zero."""
        super().__init__()
        latent = len(rank_L)
        widths = [latent, 2 * latent, 2 * latent, latent, latent]
        # A hidden unit of rank r sees the coordinates of rank < r; rank 0 sees the context alone.
        ranks = [rank_L + 1, *(torch.arange(width) % latent for width in widths[1:4]), rank_L]
        self.layers = nn.ModuleList(
            nn.Linear(before, after, bias=bias) for before, after in itertools.pairwise(widths)
        )
        self.context = nn.Linear(context, widths[1], bias=False)
        for number, (before, after) in enumerate(itertools.pairwise(ranks)):
            mask = (after.unsqueeze(1) >= before).float()
            self.register_buffer(f"mask_{number}", mask)

    def forward(self, z_BL: Tensor, context_BC: Tensor) -> Tensor:
        """Return out_BL."""
        value = z_BL
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            value = F.linear(value, layer.weight * getattr(self, f"mask_{number}"), layer.bias)
            if number == 0:
                value = value + self.context(context_BC)
            if number < len(self.layers) - 1:
                value = F.relu(value)
        return value


class PairedFlow(nn.Module):
    """z ← m(z; c_d) + exp(½ s(z; c_s)) ⊙ z, K layers; log|det| = ½ Σ s (SPL, arXiv 2603.12595).

    The shift m sees only c_d, which a swap of every comparison turns around, and has no biases; the scale s
    sees only c_s, which a swap leaves alone. Without split both see both.
    """

    def __init__(self, latent: int, context: int, layers: int, split: bool) -> None:
        """Take c_d and c_s of width `context` each."""
        super().__init__()
        self.split = split
        width = context if split else 2 * context
        self.shifts, self.scales = nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):
            rank_L = torch.randperm(latent)
            self.shifts.append(Autoregressive(rank_L, width, bias=False))
            self.scales.append(Autoregressive(rank_L, width, bias=True))

    def forward(self, z_BL: Tensor, odd_BC: Tensor, even_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_K and log|det| of each row."""
        if not self.split:
            odd_BC = even_BC = torch.cat([odd_BC, even_BC], -1)
        log_det_B = z_BL.new_zeros(z_BL.shape[:-1])
        for shift, scale in zip(self.shifts, self.scales, strict=True):
            shift_BL = shift(z_BL, odd_BC).clamp(-SHIFT_BOUND, SHIFT_BOUND)
            log_scale_BL = scale(z_BL, even_BC).clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
            z_BL = shift_BL + (0.5 * log_scale_BL).exp() * z_BL
            log_det_B = log_det_B + 0.5 * log_scale_BL.sum(-1)
        return z_BL, log_det_B
