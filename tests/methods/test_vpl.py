from __future__ import annotations

import math

import pytest
import torch

from raypref.methods import VPLConfig
from raypref.methods.vpl import VPL
from raypref.types import Dims
from tests.methods.contract import DIM, Contract, built, episodes, pairs
from tests.methods.small_population import SmallPopulation, accuracy, fit

RELEASED = VPLConfig.model_validate(
    {"variant": "released", "latent": 8, "hidden": 16, "recipe": {"steps": 1500, "lr": 3e-4}}
)


class TestVPL(Contract):
    config = VPLConfig()


class TestReleasedVPL(Contract):
    config = RELEASED

    @pytest.mark.slow
    def test_beats_bt_on_unseen_users_of_a_planted_population(
        self, small_population: SmallPopulation, bt_accuracy: dict[int, float]
    ) -> None:
        """The released head learns what users share, less well than BT, and nothing personal."""
        model = fit(self.config, small_population)
        figures = {shots: accuracy(model, small_population, shots) for shots in (0, 8)}
        assert 0.6 < figures[8] < bt_accuracy[0], figures
        assert abs(figures[8] - figures[0]) < 0.02, figures


class TestVPLWithAttention(Contract):
    config = VPLConfig.model_validate(
        {"posterior": "attention", "pair": "difference", "normalise": True, "recipe": {"steps": 300}}
    )


def test_the_released_variant_is_the_released_code() -> None:
    config = VPLConfig.model_validate({"variant": "released"})
    assert (config.pair, config.posterior, config.decoder) == ("concat", "attention", "mlp")
    assert (config.latent, config.hidden, config.kl, config.normalise) == (512, 512, 3e-6, True)
    assert config.recipe.context == (8, 8)
    changed = VPLConfig.model_validate({"variant": "released", "kl": 1.0, "recipe": {"steps": 5}})
    assert (changed.kl, changed.recipe.steps, changed.recipe.targets) == (1.0, 5, 1)


def test_released_parameters_are_counted_as_published() -> None:
    """methods.md's 3.94 M: D = 1024, H = L = 512."""
    with torch.device("meta"):
        model = VPLConfig.model_validate({"variant": "released"}).build(Dims(1024, 10))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(3.94e6, rel=0.01)


@pytest.fixture(scope="module")
def model() -> VPL:
    model = built(VPLConfig())
    assert isinstance(model, VPL)
    return model


@torch.no_grad()
def test_a_user_nothing_is_known_of_has_the_common_reward(model: VPL) -> None:
    context = pairs(0)
    nobody = model.infer(model.encode(context), torch.zeros_like(context.mask_BP))
    reward = model.reward(model.item(context.chosen_BPD), nobody)
    common = model.standardise(context.chosen_BPD) @ model.common_D
    torch.testing.assert_close(reward.mean_BN, common)
    assert reward.var_BN is not None
    assert float(reward.var_BN.mean()) > 1e-3


@torch.no_grad()
def test_the_variance_of_a_factored_reward_is_exact(model: VPL) -> None:
    context = pairs(0)
    user = model.infer(model.encode(context), context.mask_BP)
    item = model.item(context.chosen_BPD)
    mean, var = user.chunk(2, -1)
    random = torch.Generator().manual_seed(0)
    latents = mean + var.sqrt() * torch.randn(20_000, *mean.shape, generator=random)
    rewards = item[..., -1] + (item[..., :-1] @ latents.unsqueeze(-1)).squeeze(-1)
    expected = model.reward(item, user)
    assert expected.var_BN is not None
    torch.testing.assert_close(rewards.var(0), expected.var_BN, rtol=0.06, atol=1e-4)


def test_normalised_samples_have_norm_root_l() -> None:
    model = VPLConfig(normalise=True).build(Dims(DIM, 4))
    context = pairs(0)
    belief = model.believe(model.encode(context), context.mask_BP)
    norms = belief.sample_SXBL.norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(model.config.latent)))


def test_free_nats_cost_nothing() -> None:
    """Below its allowance the KL has no gradient: only the likelihood moves the posterior."""
    gradients = []
    for kl in (0.0, 10.0):
        torch.manual_seed(0)
        model = VPLConfig(kl=kl, free_nats=1e6, dropout=0.0).build(Dims(DIM, 4))
        torch.manual_seed(1)
        model.loss(episodes(0, model.config), 0.5).total.backward()
        gradients.append(
            [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        )
    for free, costly in zip(*gradients, strict=True):
        assert torch.equal(free, costly)


@torch.no_grad()
def test_the_latent_is_shown_to_the_diagnostics(model: VPL) -> None:
    context = pairs(0)
    shown = model.latent(model.encode(context), context.mask_BP)
    assert shown is not None
    mean, var = model.infer(model.encode(context), context.mask_BP).chunk(2, -1)
    assert torch.equal(shown.code_BL, mean)
    torch.testing.assert_close(shown.var_BL, var)
    assert shown.kl_B.shape == (4,)
    assert bool((shown.kl_B > 0).all())
