"""Random contexts drawn inside a step, so that its D-wide work serves many splits."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_contexts(mask_BP: Tensor, draws: int, most: int) -> tuple[Tensor, Tensor]:
    """Return context_RBP and target_RBP: R disjoint splits of each user's comparisons.

    The size of a context is log-uniform from 0 to `most`, one comparison at least is left as a target: few
    shots, where most is to be learned about a user, come as often as many.

    Args:
        mask_BP: weight of each comparison, 0 where padded; both results are shares of it.
        draws: R.
        most: largest context.
    """
    users, width = mask_BP.shape
    valid_BP = (mask_BP > 0).float()
    key_RBP = torch.rand(draws, users, width, device=mask_BP.device) - 2.0 * valid_BP
    place_RBP = key_RBP.argsort(-1).argsort(-1)
    limit_B = (valid_BP.sum(1) - 1).clamp(0, most)
    size_RB = torch.exp(torch.rand(draws, users, device=mask_BP.device) * torch.log(limit_B + 2)).floor() - 1
    context_RBP = (place_RBP < torch.minimum(size_RB, limit_B).unsqueeze(-1)) * mask_BP
    return context_RBP, mask_BP - context_RBP
