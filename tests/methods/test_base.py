from __future__ import annotations

import pytest
import torch

from raypref.methods import BTConfig, DPLConfig, LoReConfig, PALConfig, VRFConfig
from raypref.methods.base import MethodConfig, RewardModel
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes, Pairs

DIM, USERS, PAIRS = 384, 3, 5


def doubled(config: MethodConfig) -> tuple[RewardModel, RewardModel, Pairs, Pairs]:
    """A model and one of the same rewards on embeddings with every coordinate twice, and such embeddings."""
    torch.manual_seed(0)
    model, wider = (config.build(Dims(dim, USERS)).eval() for dim in (DIM, 2 * DIM))
    chosen_BPD, rejected_BPD = torch.randn(2, USERS, PAIRS, DIM)
    pairs = Pairs(chosen_BPD, rejected_BPD, torch.ones(USERS, PAIRS))
    # Half of each head is the same reward.
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
    return model, wider, pairs, twice


@pytest.mark.parametrize("config", [BTConfig(), DPLConfig(), LoReConfig(bases=2), VRFConfig(basis_l2=1.0)])
def test_a_reward_costs_the_same_in_wider_embeddings(config: MethodConfig) -> None:
    model, wider, pairs, twice = doubled(config)

    def penalty(model: RewardModel, pairs: Pairs) -> float:
        torch.manual_seed(1)
        return float(model.loss(Episodes(pairs, pairs, torch.arange(USERS)), 0.5).parts["penalty"])

    assert penalty(model, pairs) > 0
    assert penalty(wider, twice) == pytest.approx(penalty(model, pairs), rel=1e-5)


@pytest.mark.parametrize("method", [LoReConfig, PALConfig])
def test_equal_rewards_train_to_equal_rewards_in_wider_embeddings(method: type[MethodConfig]) -> None:
    config = method()
    recipe = config.recipe.model_copy(update={"steps": 3, "weight_decay": 0.1, "clip": 1e6})
    model, wider, pairs, twice = doubled(config)

    def trained(model: RewardModel, pairs: Pairs) -> torch.Tensor:
        episodes = Episodes(pairs, pairs, torch.arange(USERS))
        for _ in train(start(model, recipe), [episodes] * recipe.steps, recipe, seed=0):
            pass
        model.eval()
        with torch.no_grad():
            return model(pairs, model.infer(model.encode(pairs), pairs.mask_BP)).mean_BN

    with torch.no_grad():
        before_BP = model(pairs, model.infer(model.encode(pairs), pairs.mask_BP)).mean_BN
    after_BP = trained(model, pairs)
    assert (after_BP - before_BP).abs().max() > 0.1
    torch.testing.assert_close(trained(wider, twice), after_BP, rtol=1e-3, atol=1e-3)
