from __future__ import annotations

import pytest
import torch

from raypref.methods import LoReConfig
from raypref.methods.base import Recipe
from raypref.methods.fewshot import gaussian_posterior, leave_one_out, log_likelihood, pack, unpack
from raypref.types import Dims
from tests.methods.contract import Contract, built, pairs


class TestLoRe(Contract):
    config = LoReConfig(bases=4)


class TestPublishedLoRe(Contract):
    config = LoReConfig(solver="adam", bases=3, adapt_steps=100)


def test_a_partial_recipe_keeps_the_vetted_rest() -> None:
    config = LoReConfig.model_validate({"type": "lore", "recipe": {"steps": 7}})
    assert config.recipe == LoReConfig().recipe.model_copy(update={"steps": 7})
    published = LoReConfig.model_validate({"type": "lore", "solver": "adam", "recipe": {"steps": 7}})
    assert published.recipe.lr == 0.5
    assert published.recipe.steps == 7
    assert isinstance(published.recipe, Recipe)


def test_one_published_basis_is_bt() -> None:
    """LoRe with one basis has the weight 1 for every user, whatever they prefer."""
    model = built(LoReConfig(solver="adam", bases=1, adapt_steps=5))
    with torch.no_grad():
        context = pairs(0)
        users = model.infer(model.encode(context), context.mask_BP)
        assert torch.equal(users, torch.ones(4, 1))


def test_published_weights_stand_on_the_simplex() -> None:
    model = built(LoReConfig(solver="adam", bases=5, adapt_steps=20))
    context = pairs(0)
    users = model.infer(model.encode(context), context.mask_BP)
    assert bool((users >= 0).all())
    torch.testing.assert_close(users.sum(1), torch.ones(4))


def test_posterior_recovers_planted_weights() -> None:
    random = torch.Generator().manual_seed(0)
    truth_BK = torch.randn(5, 3, generator=random)
    feature_BPK = torch.randn(5, 4000, 3, generator=random)
    common_BP = 0.5 * torch.randn(5, 4000, generator=random)
    margin_BP = common_BP + (feature_BPK @ truth_BK.unsqueeze(-1)).squeeze(-1)
    sign_BP = torch.where(torch.rand(5, 4000, generator=random) < torch.sigmoid(margin_BP), 1.0, -1.0)
    mean_BK, cov_BKK = gaussian_posterior(
        common_BP * sign_BP, feature_BPK * sign_BP.unsqueeze(-1), torch.ones(5, 4000), 20
    )
    assert float((mean_BK - truth_BK).abs().max()) < 0.2
    assert float(cov_BKK.diagonal(dim1=-2, dim2=-1).max()) < 0.01


def test_posterior_of_nothing_is_the_prior() -> None:
    mean_BK, cov_BKK = gaussian_posterior(torch.zeros(2, 3), torch.randn(2, 3, 4), torch.zeros(2, 3), 3)
    assert torch.equal(mean_BK, torch.zeros(2, 4))
    torch.testing.assert_close(cov_BKK, torch.eye(4).expand(2, 4, 4))


def test_a_weight_of_two_is_the_comparison_twice() -> None:
    common, feature = torch.randn(1, 3), torch.randn(1, 3, 2)
    weighted = gaussian_posterior(common, feature, torch.tensor([[2.0, 1.0, 1.0]]), 8)
    order = [0, 0, 1, 2]
    repeated = gaussian_posterior(common[:, order], feature[:, order], torch.ones(1, 4), 8)
    torch.testing.assert_close(weighted, repeated)


def test_leave_one_out_never_uses_a_user_for_themselves() -> None:
    weights_SK = torch.tensor([[1.0], [2.0], [6.0]])
    loglik_SS = torch.zeros(3, 3)
    torch.testing.assert_close(leave_one_out(loglik_SS, weights_SK, 1), torch.tensor([[4.0], [3.5], [1.5]]))


def test_log_likelihood_adds_up_over_comparisons() -> None:
    common, feature, weights = torch.randn(2, 4), torch.randn(2, 4, 3), torch.randn(5, 3)
    whole = log_likelihood(common, feature, torch.ones(2, 4), weights)
    halves = sum(
        log_likelihood(common[:, part], feature[:, part], torch.ones(2, 2), weights)
        for part in (slice(0, 2), slice(2, 4))
    )
    torch.testing.assert_close(whole, halves)


def test_packing_keeps_a_symmetric_matrix() -> None:
    root = torch.randn(3, 4, 4)
    matrix = root @ root.mT
    assert pack(matrix).shape == (3, 10)
    torch.testing.assert_close(unpack(pack(matrix), 4), matrix)


@pytest.mark.parametrize("users", [1, 5, 40])
def test_the_prior_takes_any_number_of_seen_users(users: int) -> None:
    torch.manual_seed(0)
    model = LoReConfig(bases=3, particles=16).build(Dims(16, users))
    model.settle([pairs(1, users)])
    context = pairs(0)
    inferred = model.infer(model.encode(context), context.mask_BP)
    assert bool(torch.isfinite(inferred).all())
