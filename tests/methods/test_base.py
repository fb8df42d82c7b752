from __future__ import annotations

import pytest
import torch

from raypref.methods import BTConfig, DPLConfig, LoReConfig, VRFConfig
from raypref.methods.base import MethodConfig
from raypref.types import Dims, Episodes, Pairs

DIM, USERS, PAIRS = 384, 3, 5


@pytest.mark.parametrize("config", [BTConfig(), DPLConfig(), LoReConfig(bases=2), VRFConfig(basis_l2=1.0)])
def test_a_reward_costs_the_same_in_wider_embeddings(config: MethodConfig) -> None:
    torch.manual_seed(0)
    model, wider = (config.build(Dims(dim, USERS)).eval() for dim in (DIM, 2 * DIM))
    pairs = Pairs(*torch.randn(2, USERS, PAIRS, DIM), torch.ones(USERS, PAIRS))
    # Every coordinate twice: half of each head is the same reward.
    twice = Pairs(pairs.chosen_BPD.repeat(1, 1, 2), pairs.rejected_BPD.repeat(1, 1, 2), pairs.mask_BP)
    with torch.no_grad():
        for (name, part), other in zip(model.named_parameters(), wider.parameters(), strict=True):
            if DIM in part.shape:
                part.add_(0.1 * torch.randn_like(part))
                axis = part.shape.index(DIM)
                other.copy_(torch.cat([part, part], axis) / 2)
            else:
                other.copy_(part)
            assert part.shape == other.shape or DIM in part.shape, name
        for (name, part), other in zip(model.named_buffers(), wider.buffers(), strict=True):
            if name not in ("center_D", "scale"):
                other.copy_(part)

    def penalty(model: torch.nn.Module, pairs: Pairs) -> float:
        torch.manual_seed(1)
        return float(model.loss(Episodes(pairs, pairs, torch.arange(USERS)), 0.5).parts["penalty"])

    assert penalty(model, pairs) > 0
    assert penalty(wider, twice) == pytest.approx(penalty(model, pairs), rel=1e-5)
