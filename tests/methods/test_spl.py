from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from raypref.methods import SPLConfig
from raypref.methods.encoders import ProductPosterior
from raypref.methods.gaussians import kl_to_normal
from raypref.methods.spl import SPL
from raypref.types import Dims
from tests.methods.contract import DIM, Contract, built, episodes, pairs
from tests.methods.small_population import SmallPopulation, accuracy, fit

RELEASED = SPLConfig.model_validate(
    {"variant": "released", "latent": 8, "hidden": 16, "recipe": {"steps": 1500, "lr": 3e-4}}
)


class TestSPL(Contract):
    config = SPLConfig.model_validate({"recipe": {"steps": 400}})


class TestReleasedSPL(Contract):
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


class TestSPLWithoutItsIngredients(Contract):
    config = SPLConfig.model_validate(
        {"flow": "none", "modulation": False, "guidance": 0.0, "recipe": {"steps": 300}}
    )


class TestSPLWithOneContextForBoth(Contract):
    config = SPLConfig.model_validate(
        {"flow": "joint", "elements": "mlp", "layers": 1, "recipe": {"steps": 400}}
    )


@torch.enable_grad()
def spl(config: SPLConfig | None = None) -> SPL:
    model = built(config or SPLConfig())
    assert isinstance(model, SPL)
    return model


def test_the_released_variant_is_the_released_code() -> None:
    config = SPLConfig.model_validate({"variant": "released"})
    assert (config.elements, config.posterior, config.decoder) == ("mlp", "attention", "mlp")
    assert (config.flow, config.layers, config.modulation) == ("split", 2, True)
    assert (config.guidance, config.guidance_spread, config.free_nats) == (1e-5, 0.1, 1.0)
    assert (config.latent, config.hidden) == (1024, 1024)


def test_released_parameters_are_counted_as_published() -> None:
    """methods.md's 60.9 M at D = 3072, of which 42.0 M in the flow."""
    with torch.device("meta"):
        model = SPLConfig.model_validate({"variant": "released"}).build(Dims(3072, 10))
    assert isinstance(model, SPL)
    flow = sum(parameter.numel() for parameter in model.flow.parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert flow == pytest.approx(42.0e6, rel=0.03)
    assert whole == pytest.approx(60.9e6, rel=0.03)


@pytest.mark.parametrize("config", [SPLConfig(), RELEASED])
def test_swapping_twice_gives_the_evidence_back(config: SPLConfig) -> None:
    model, context = spl(config), pairs(0)
    with torch.no_grad():
        evidence = model.encode(context)
        assert torch.equal(model.swap(model.swap(evidence)), evidence)
        torch.testing.assert_close(model.swap(evidence), model.encode(context.swap()))


@torch.no_grad()
def test_a_swapped_user_starts_as_the_opposite_one() -> None:
    """Before any step the Gaussian nearly mirrors; the guidance is what then keeps it."""
    torch.manual_seed(0)
    model, context = SPLConfig().build(Dims(DIM, 4)).eval(), pairs(0)
    evidence = model.encode(context)
    forth, back = (model.gaussian(side, context.mask_BP)[0] for side in (evidence, model.swap(evidence)))
    cosine = torch.nn.functional.cosine_similarity(forth, back)
    assert float(cosine.max()) < -0.9


def test_guidance_mirrors_the_gaussian() -> None:
    """Trained on nothing else, the guidance makes μ_swap the opposite of μ."""
    found = {}
    for guidance in (0.0, 100.0):
        config = SPLConfig(guidance=guidance, elements="mlp", log_precision=0.0)
        model = spl(config.model_copy(update={"recipe": config.recipe.model_copy(update={"lr": 1e-2})}))
        assert isinstance(model.posterior, ProductPosterior)
        with torch.no_grad():
            model.posterior.heads.weight.normal_(generator=torch.Generator().manual_seed(0))
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        model.train()
        for step in range(40):
            optimiser.zero_grad()
            model.loss(episodes(step, config), 0.5).total.backward()
            optimiser.step()
        model.eval()
        context = pairs(999)
        with torch.no_grad():
            evidence = model.encode(context)
            forth, back = (model.gaussian(e, context.mask_BP)[0] for e in (evidence, model.swap(evidence)))
        found[guidance] = float(torch.nn.functional.cosine_similarity(forth, back).mean())
    assert found[100.0] < found[0.0] - 0.1
    assert found[100.0] < -0.8


@torch.no_grad()
def test_a_user_nothing_is_known_of_has_the_common_reward() -> None:
    model, context = spl(), pairs(0)
    nobody = model.infer(model.encode(context), torch.zeros_like(context.mask_BP))
    reward = model.reward(model.item(context.chosen_BPD), nobody)
    torch.testing.assert_close(reward.mean_BN, model.standardise(context.chosen_BPD) @ model.common_D)
    assert reward.var_BN is not None
    assert float(reward.var_BN.mean()) > 1e-3


@torch.no_grad()
def test_the_kl_estimate_without_a_flow_agrees_with_the_closed_form() -> None:
    model, context = spl(SPLConfig(flow="none", samples=4000)), pairs(0)
    belief = model.believe(model.encode(context), context.mask_BP)
    closed = kl_to_normal(belief.mean_XBL, belief.log_var_XBL.exp())
    torch.testing.assert_close(belief.kl_XB, closed, rtol=0.05, atol=0.1)


def test_without_modulation_the_weights_are_linear() -> None:
    model = spl(SPLConfig(modulation=False))
    z = torch.randn(2, 32)
    torch.testing.assert_close(model.weights(-3.0 * z), -3.0 * model.weights(z))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be even"):
        SPLConfig(latent=7)
    with pytest.raises(ValidationError, match="needs decoder: factored"):
        SPLConfig(decoder="mlp")
