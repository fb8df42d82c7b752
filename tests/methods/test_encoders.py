from __future__ import annotations

import itertools

import pytest
import torch

from raypref.methods.encoders import AttentionPosterior, ProductPosterior, anneal
from raypref.methods.gaussians import kl, kl_to_normal

Posterior = AttentionPosterior | ProductPosterior


@pytest.fixture(params=["attention", "product"])
def posterior(request: pytest.FixtureRequest) -> Posterior:
    torch.manual_seed(0)
    model = AttentionPosterior(6, 4, 1.0) if request.param == "attention" else ProductPosterior(6, 8, 4, -1.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_contexts_of_the_same_comparisons_are_inferred_together(posterior: Posterior) -> None:
    tokens, masks = torch.randn(3, 5, 6), (torch.rand(2, 3, 5) < 0.6).float()
    together = posterior(tokens, masks)
    for draw in range(2):
        for whole, alone in zip(together, posterior(tokens, masks[draw]), strict=True):
            torch.testing.assert_close(whole[draw], alone)


@torch.no_grad()
def test_a_weight_of_two_is_the_comparison_twice(posterior: Posterior) -> None:
    tokens = torch.randn(1, 3, 6)
    weighted = posterior(tokens, torch.tensor([[2.0, 1.0, 1.0]]))
    repeated = posterior(tokens[:, [0, 0, 1, 2]], torch.ones(1, 4))
    for one, other in zip(weighted, repeated, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_only_the_product_sharpens_with_evidence() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 1, 6).expand(1, 16, 6)
    product, attention = ProductPosterior(6, 8, 4, -1.0), AttentionPosterior(6, 4, 1.0)
    widths = [product(tokens[:, :count], torch.ones(1, count))[1] for count in (0, 1, 4, 16)]
    assert torch.equal(widths[0], torch.zeros(1, 4))
    assert all(bool((wide > narrow).all()) for wide, narrow in itertools.pairwise(widths))
    torch.testing.assert_close(
        attention(tokens[:, :1], torch.ones(1, 1)), attention(tokens, torch.ones(1, 16))
    )


@torch.no_grad()
def test_attention_is_clamped() -> None:
    model = AttentionPosterior(6, 4, 0.5)
    mean, log_var = model(1e3 * torch.randn(2, 3, 6), torch.ones(2, 3))
    assert float(mean.abs().max()) <= 0.5
    assert float(log_var.abs().max()) <= 0.5


def test_kl_to_normal_is_the_general_kl() -> None:
    mean, log_var = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl(mean, log_var.exp(), torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(kl_to_normal(mean, log_var.exp()), expected)
    assert float(kl_to_normal(torch.zeros(1, 3), torch.ones(1, 3))) == 0.0


def test_annealing_rises_from_a_tenth_to_one_in_each_cycle() -> None:
    assert anneal(0.0, 1) == pytest.approx(0.1)
    assert anneal(0.5, 1) == pytest.approx(0.55)
    assert anneal(0.999999, 1) == pytest.approx(1.0)
    assert anneal(0.5, 2) == pytest.approx(0.1)
    rising = [anneal(step / 100, 1) for step in range(100)]
    assert rising == sorted(rising)
