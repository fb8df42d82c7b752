from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from raypref.methods import PALConfig
from raypref.methods.pal import PAL, PublishedPAL
from raypref.types import Dims
from tests.methods.contract import DIM, Contract, built, episodes, pairs


class TestPAL(Contract):
    config = PALConfig()


class TestPALWithANetwork(Contract):
    config = PALConfig(projector="mlp2")


class TestPublishedPAL(Contract):
    # At the published rate a user moves so little in 8 shots that personal rewards hardly show.
    config = PALConfig.model_validate(
        {"type": "pal", "solver": "adamw", "prototypes": 4, "width": 64, "adapt_lr": 0.05}
    )


@pytest.fixture(scope="module")
def model() -> PAL:
    model = built(PALConfig())
    assert isinstance(model, PAL)
    return model


@pytest.fixture(scope="module")
def published() -> PublishedPAL:
    model = built(PALConfig.model_validate({"type": "pal", "solver": "adamw", "prototypes": 3, "width": 8}))
    assert isinstance(model, PublishedPAL)
    return model


@torch.no_grad()
def test_evidence_adds_up(model: PAL) -> None:
    """Two replicas that each add a comparison agree, whichever comes first."""
    evidence = model.encode(pairs(0))
    whole = model.infer(evidence, torch.ones(4, 6))
    torch.testing.assert_close(model.infer(evidence.sum(1, keepdim=True), torch.ones(4, 1)), whole)


@torch.no_grad()
def test_forgetting_a_comparison_is_exact(model: PAL) -> None:
    evidence, mask, kept = model.encode(pairs(0)), torch.ones(4, 6), [0, 1, 3, 4, 5]
    mask[:, 2] = 0.0
    forgotten = model.infer(evidence, mask)
    torch.testing.assert_close(
        forgotten, model.infer(evidence[:, kept], torch.ones(4, 5)), rtol=1e-5, atol=1e-6
    )
    assert not torch.allclose(forgotten, model.infer(evidence, torch.ones(4, 6)), atol=1e-4)


@torch.no_grad()
def test_inference_is_bayes_rule(model: PAL) -> None:
    context = pairs(0)
    margin = model.item(context.chosen_BPD) - model.item(context.rejected_BPD)
    joint = torch.softmax(model.log_prior_S, 0) * torch.sigmoid(margin.double()).prod(1)
    expected = (joint / joint.sum(1, keepdim=True)).float()
    torch.testing.assert_close(
        model.infer(model.encode(context), context.mask_BP), expected, rtol=1e-4, atol=1e-6
    )


@torch.no_grad()
def test_variance_is_that_of_the_reward_over_the_points(model: PAL) -> None:
    chance = model.infer(model.encode(pairs(0)), torch.ones(4, 6)).unsqueeze(1)
    items = model.item(pairs(1).chosen_BPD)
    reward = model.reward(items, chance.squeeze(1))
    expected = (chance * items.square()).sum(-1) - (chance * items).sum(-1).square()
    assert reward.var_BN is not None
    torch.testing.assert_close(reward.var_BN, expected, rtol=1e-3, atol=1e-5)


def test_a_user_nothing_is_known_of_has_the_common_reward() -> None:
    model, context = built(PALConfig()), pairs(0)
    assert isinstance(model, PAL)
    with torch.no_grad():
        model.common_D.normal_()
        model.log_prior_S.normal_()
        nobody = model.infer(model.encode(context), torch.zeros_like(context.mask_BP))
        reward = model.reward(model.item(context.chosen_BPD), nobody)
        common = model.standardise(context.chosen_BPD) @ model.common_D
    torch.testing.assert_close(reward.mean_BN, common, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_users_own_point_is_nearness_to_it(model: PAL) -> None:
    """Two corners' rewards differ by how much nearer the item is to one prototype than to the other."""
    emb = pairs(0).chosen_BPD[0]
    place = model.standardise(emb) @ model.down_DL
    distance = torch.cdist(place, model.prototypes_KL, compute_mode="donot_use_mm_for_euclid_dist")
    rewards = model.item(emb)[:, : len(model.prototypes_KL)]
    torch.testing.assert_close(rewards[:, :1] - rewards, distance - distance[:, :1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("projector", ["linear", "mlp2"])
def test_one_prototype_is_one_reward_for_everybody(projector: str) -> None:
    model = built(PALConfig.model_validate({"type": "pal", "prototypes": 1, "projector": projector}))
    assert isinstance(model, PAL)
    context, target = pairs(0), pairs(1)
    difference = model.standardise(target.chosen_BPD) - model.standardise(target.rejected_BPD)
    with torch.no_grad():
        margin = model(target, model.infer(model.encode(context), context.mask_BP))
        common = difference @ model.common_D
    torch.testing.assert_close(margin.mean_BN, common, rtol=1e-3, atol=1e-4)
    assert margin.var_BN is not None
    assert float(margin.var_BN.max()) < 1e-6


def test_one_published_prototype_is_one_reward_for_everybody() -> None:
    model = built(PALConfig.model_validate({"type": "pal", "solver": "adamw", "prototypes": 1, "width": 8}))
    context = pairs(0)
    assert torch.equal(model.infer(model.encode(context), context.mask_BP), torch.ones(4, 1))


@torch.no_grad()
def test_users_stand_on_the_simplex(model: PAL, published: PublishedPAL) -> None:
    context = pairs(0)
    for each in (model, published):
        landscape = each.landscape(each.infer(each.encode(context), context.mask_BP))
        assert bool((landscape.mean_BL >= 0).all())
        torch.testing.assert_close(landscape.mean_BL.sum(1), torch.ones(4))
        assert landscape.bases_KL is not None
        torch.testing.assert_close(landscape.bases_KL.sum(1), torch.ones(len(landscape.bases_KL)))
    torch.testing.assert_close(model.simplex_SK.sum(1), torch.ones(len(model.simplex_SK)))


@torch.no_grad()
def test_the_nearer_item_wins_by_how_much_nearer_it_is(published: PublishedPAL) -> None:
    user = torch.tensor([[0.2, 0.5, 0.3]])
    point = published.head(user @ published.prototypes_KL)
    near, far = point + 0.5 * torch.eye(8)[0], point - 2.0 * torch.eye(8)[1]
    margin = published.margin(near.unsqueeze(0), far.unsqueeze(0), user)
    torch.testing.assert_close(margin.mean_BN, torch.tensor([[1.5]]), rtol=1e-4, atol=1e-4)


def test_the_hinge_is_zero_from_a_margin_of_one_on() -> None:
    config = PALConfig.model_validate({"type": "pal", "solver": "adamw", "width": DIM})
    torch.manual_seed(0)
    model, batch = config.build(Dims(DIM, 4)), episodes(0, config)
    assert isinstance(model, PublishedPAL)
    margin = model(batch.target, torch.softmax(model.logits_UK, -1)).mean_BN
    assert bool((margin < 1).any() & (margin > 1).any())
    expected = (1 - margin).clamp_min(0).mean()
    torch.testing.assert_close(model.loss(batch, 0.5).total, expected)


def test_a_new_user_takes_the_steps_of_the_published_batches(published: PublishedPAL) -> None:
    """One to four comparisons are one batch an epoch, five are two: twice the way."""
    evidence = published.encode(pairs(0, comparisons=1)).detach()
    start = published.center_K

    def moved(copies: int) -> torch.Tensor:
        users = published.infer(evidence.expand(-1, copies, -1), torch.ones(4, copies))
        return (users - start).abs().sum(1)

    torch.testing.assert_close(moved(4), moved(1), rtol=1e-3, atol=1e-5)
    assert bool((moved(5) > 1.5 * moved(1)).all())


def test_the_published_solver_has_its_own_defaults() -> None:
    config = PALConfig.model_validate({"type": "pal", "solver": "adamw", "recipe": {"steps": 7}})
    assert (config.prototypes, config.width, config.recipe.lr, config.recipe.steps) == (2, 512, 1e-4, 7)
    model = config.build(Dims(DIM, 4))
    projector, points = model.parameter_groups(config.recipe)
    assert projector["weight_decay"] == 0.01
    assert points["lr"] == pytest.approx(5e-3)
    grouped = sum(parameter.numel() for group in (projector, points) for parameter in group["params"])
    assert grouped == sum(parameter.numel() for parameter in model.parameters())


def test_fewer_points_than_prototypes_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least prototypes"):
        PALConfig(prototypes=8, points=4)
