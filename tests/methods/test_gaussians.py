from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raypref.methods import gaussians as g


def draw(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random), 0.2 + torch.rand(*shape, generator=random)


def test_wasserstein_agrees_with_the_optimal_coupling_of_samples() -> None:
    (mean_a, var_a), (mean_b, var_b) = draw(0, 3), draw(1, 3)
    noise = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(2))
    # For diagonal Gaussians the optimal coupling moves every standard-normal draw along both maps.
    sampled = ((mean_a + var_a.sqrt() * noise) - (mean_b + var_b.sqrt() * noise)).square().sum(-1).mean()
    assert g.wasserstein2(mean_a, var_a, mean_b, var_b).item() == pytest.approx(sampled.item(), rel=0.01)


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_wasserstein_is_symmetric_and_zero_only_between_equals(seed: int) -> None:
    (mean_a, var_a), (mean_b, var_b) = draw(seed, 4), draw(seed + 1, 4)
    distance = g.wasserstein2(mean_a, var_a, mean_b, var_b)
    assert distance == g.wasserstein2(mean_b, var_b, mean_a, var_a)
    assert distance > 0
    assert g.wasserstein2(mean_a, var_a, mean_a, var_a) == 0


@pytest.mark.parametrize("copies", [1, 2, 7])
def test_product_of_copies_keeps_the_mean_and_divides_the_variance(copies: int) -> None:
    mean_L, var_L = draw(3, 5)
    precision = (1 / var_L).expand(1, copies, 5)
    mean, var = g.product(torch.cat([precision, precision * mean_L], -1), torch.ones(1, copies), 0.0)
    torch.testing.assert_close(mean[0], mean_L)
    torch.testing.assert_close(var[0], var_L / copies)


def test_product_ignores_padding_and_order() -> None:
    mean, var = draw(4, 2, 6, 3)
    natural = torch.cat([1 / var, mean / var], -1)
    mask = torch.tensor([[1.0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    whole = g.product(natural, mask, 1.0)
    alone = g.product(natural[:1, :3], torch.ones(1, 3), 1.0)
    order = torch.tensor([2, 0, 1])
    shuffled = g.product(natural[:1, order], torch.ones(1, 3), 1.0)
    for part in range(2):
        torch.testing.assert_close(whole[part][:1], alone[part])
        torch.testing.assert_close(shuffled[part], alone[part])


def test_product_of_nothing_is_the_prior() -> None:
    mean, var = g.product(torch.zeros(1, 0, 6), torch.zeros(1, 0), 4.0)
    assert torch.equal(mean, torch.zeros(1, 3))
    assert torch.equal(var, torch.full((1, 3), 0.25))


def test_kl_agrees_with_torch() -> None:
    (mean_a, var_a), (mean_b, var_b) = draw(5, 4), draw(6, 4)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean_a, var_a.sqrt()), torch.distributions.Normal(mean_b, var_b.sqrt())
    ).sum()
    torch.testing.assert_close(g.kl(mean_a, var_a, mean_b, var_b), expected)


def test_mixture_of_identical_components_has_the_kl_of_one() -> None:
    mean, var = draw(7, 5, 3)
    mean_k, var_k = draw(8, 3)
    many = mean_k.expand(6, 3), var_k.expand(6, 3)
    expected = g.kl(mean, var, mean_k, var_k)
    torch.testing.assert_close(g.kl_to_mixture_bound(mean, var, *many), expected)


@given(st.integers(0, 200))
@settings(max_examples=15, deadline=None)
def test_mixture_bound_is_above_the_sampled_divergence_which_is_not_negative(seed: int) -> None:
    mean, var = draw(seed, 4, 3)
    mixture = draw(seed + 1, 5, 3)
    noise = torch.randn(4000, 4, 3, generator=torch.Generator().manual_seed(seed))
    sampled = g.kl_to_mixture_sampled(mean, var, *mixture, noise)
    bound = g.kl_to_mixture_bound(mean, var, *mixture)
    assert bool((sampled <= bound + 0.1).all())
    assert bool((sampled >= -0.1).all())


def test_information_gain_is_what_sampling_finds() -> None:
    mean, var = torch.tensor([0.0, 1.5, -3.0]), torch.tensor([4.0, 0.5, 9.0])
    generator = torch.Generator().manual_seed(0)
    chance = torch.sigmoid(mean + var.sqrt() * torch.randn(400_000, 3, generator=generator))

    def entropy(p: Tensor) -> Tensor:
        return torch.special.entr(p) + torch.special.entr(1 - p)

    sampled = entropy(chance.mean(0)) - entropy(chance).mean(0)
    torch.testing.assert_close(g.information_gain(mean, var), sampled, atol=2e-3, rtol=0.0)


def test_information_gain_is_none_without_doubt_and_the_same_either_way_round() -> None:
    mean, var = torch.linspace(-5, 5, 11), torch.linspace(0, 9, 11)
    gain = g.information_gain(mean, var)
    torch.testing.assert_close(gain, g.information_gain(-mean, var))
    assert gain[0] == 0
    assert bool((gain >= 0).all())
    assert float(gain.max()) < math.log(2)
