from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from scipy import integrate, stats

from raypref.methods import VRFConfig
from raypref.methods.contexts import draw_contexts
from raypref.methods.gaussians import kl_to_mixture_sampled
from raypref.methods.vrf import VRF
from raypref.types import Dims, Pairs, Reward
from tests.methods.contract import DIM, Contract, built, episodes, pairs


class TestVRF(Contract):
    config = VRFConfig()


class TestVRFWithPosteriorVariance(Contract):
    config = VRFConfig(
        variance="both",
        kl_samples=1,
        attenuate=False,
        prior="normal",
        features=0,
        bases=4,
        recipe=VRFConfig().recipe.model_copy(update={"steps": 600}),
    )


@pytest.fixture(scope="module")
def model() -> VRF:
    model = built(VRFConfig())
    assert isinstance(model, VRF)
    return model


@torch.no_grad()
def test_evidence_adds_up(model: VRF) -> None:
    """Two replicas that each add a comparison agree, whichever comes first."""
    evidence = model.encode(pairs(0))
    whole = model.infer(evidence, torch.ones(4, 6))
    total = evidence.sum(1, keepdim=True)
    torch.testing.assert_close(model.infer(total, torch.ones(4, 1)), whole)


@torch.no_grad()
def test_forgetting_a_comparison_is_exact(model: VRF) -> None:
    evidence = model.encode(pairs(0))
    mask = torch.ones(4, 6)
    mask[:, 2] = 0.0
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(
        model.infer(evidence, mask), model.infer(evidence[:, kept], torch.ones(4, 5)), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_more_comparisons_never_widen_a_user(model: VRF) -> None:
    evidence = model.encode(pairs(0))
    widths = [model.infer(evidence[:, :count], torch.ones(4, count)).chunk(2, -1)[1] for count in range(7)]
    assert torch.equal(widths[0], torch.ones_like(widths[0]))
    for wider, narrower in itertools.pairwise(widths):
        assert bool((narrower <= wider).all())


@torch.no_grad()
def test_weights_are_a_distribution(model: VRF) -> None:
    mean, var = model.infer(model.encode(pairs(0)), torch.ones(4, 6)).chunk(2, -1)
    weights = model.weights(mean, var)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))


def test_a_user_nothing_is_known_of_has_the_common_reward() -> None:
    model, context = built(VRFConfig()), pairs(0)
    assert isinstance(model, VRF)
    with torch.no_grad():
        model.common_D.normal_()
        model.basis_mean_KL.normal_()
        nobody = model.infer(model.encode(context), torch.zeros_like(context.mask_BP))
        reward = model.reward(model.item(context.chosen_BPD), nobody)
        common = model.standardise(context.chosen_BPD) @ model.common_D
    torch.testing.assert_close(reward.mean_BN, common, rtol=1e-4, atol=1e-4)


def test_what_all_bases_share_is_left_to_the_common_reward() -> None:
    """Only the heads' differences count: one direction added to all of them changes no reward."""
    model, context = built(VRFConfig()), pairs(0)
    assert isinstance(model, VRF)
    with torch.no_grad():
        before = model.item(context.chosen_BPD)
        model.heads_KD.add_(torch.randn(DIM))
        torch.testing.assert_close(model.item(context.chosen_BPD), before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_user_on_one_basis_has_no_variance_between_bases(model: VRF) -> None:
    items = model.item(pairs(1).chosen_BPD)
    on_basis = torch.cat([1e3 * model.basis_mean_KL[:1], torch.ones(1, 32)], -1).expand(4, -1)
    reward = model.reward(items, on_basis)
    assert reward.var_BN is not None
    assert float(reward.var_BN.max()) < 1e-6
    diffuse = model.reward(items, model.infer(model.encode(pairs(0)), torch.zeros(4, 6)))
    assert diffuse.var_BN is not None
    assert float(diffuse.var_BN.mean()) > 1e-3


@torch.no_grad()
def test_variance_between_bases_is_the_law_of_total_variance(model: VRF) -> None:
    user = model.infer(model.encode(pairs(0)), torch.ones(4, 6))
    items = model.item(pairs(1).chosen_BPD)
    weights = model.weights(*user.chunk(2, -1)).unsqueeze(1)
    expected = (weights * items.square()).sum(-1) - (weights * items).sum(-1).square()
    reward = model.reward(items, user)
    assert reward.var_BN is not None
    torch.testing.assert_close(reward.var_BN, expected, rtol=1e-3, atol=1e-4)


def test_without_variance_the_attenuated_loss_is_bt() -> None:
    mean = torch.randn(3, 4)
    assert torch.equal(Reward(mean, torch.zeros(3, 4)).logit_BN(), mean)
    assert torch.equal(Reward(mean).logit_BN(), mean)


@pytest.mark.parametrize("mean", [-4.0, -1.0, 0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("std", [0.1, 1.0, 4.0])
def test_attenuation_is_close_to_the_expected_probability(mean: float, std: float) -> None:
    exact, _ = integrate.quad(
        lambda x: stats.norm.pdf(x) / (1.0 + math.exp(-(mean + std * x))), -9, 9, limit=200
    )
    reward = Reward(torch.tensor([[mean]]), torch.tensor([[std**2]]))
    # methods.md §7.3: the worst error of the approximation is 0.009 in probability.
    assert reward.probability_BN().item() == pytest.approx(exact, abs=0.0095)


def test_variance_raises_the_loss_of_right_comparisons_only() -> None:
    for mean, sign in ((1.0, 1), (-1.0, -1)):
        losses = [
            -torch.nn.functional.logsigmoid(
                Reward(torch.tensor([[mean]]), torch.tensor([[var]])).logit_BN()
            ).item()
            for var in (0.0, 1.0, 9.0)
        ]
        assert sign * losses[0] < sign * losses[1] < sign * losses[2]


def test_contexts_and_targets_split_the_comparisons() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1.0] * 10, [1.0] * 4 + [0.0] * 6, [2.0] + [0.0] * 9])
    sizes = set()
    for _ in range(50):
        context, target = draw_contexts(mask, 3, 6)
        torch.testing.assert_close(context + target, mask.expand(3, 3, 10))
        assert bool(((context == 0) | (target == 0)).all())
        assert bool(((target > 0).sum(-1) >= 1).all())
        sizes |= set((context > 0).sum(-1)[:, 0].tolist())
        assert bool((context[:, 2] == 0).all())
    assert sizes == set(range(7))


def test_an_odd_pair_swap_turns_the_start_around() -> None:
    """At the start the encoder is a Bayes rule: the swapped comparison speaks for the opposite bases."""
    torch.manual_seed(0)
    model = VRFConfig(features=0, dropout=0.0).build(Dims(DIM, 4))
    model.eval()
    context = pairs(0, comparisons=1)
    with torch.no_grad():
        forth = model.weights(*model.infer(model.encode(context), context.mask_BP).chunk(2, -1))
        back = model.weights(*model.infer(model.encode(context.swap()), context.mask_BP).chunk(2, -1))
        deltas = (model.item(context.chosen_BPD) - model.item(context.rejected_BPD))[:, 0]
    for user in range(4):
        assert forth[user].argmax() == deltas[user].argmax()
        assert back[user].argmax() == deltas[user].argmin()


def test_swapping_twice_gives_the_comparisons_back() -> None:
    batch = pairs(0)
    twice = batch.swap().swap()
    assert isinstance(twice, Pairs)
    assert torch.equal(twice.chosen_BPD, batch.chosen_BPD)
    assert torch.equal(batch.swap().chosen_BPD, batch.rejected_BPD)


def test_separation_falls_as_bases_part() -> None:
    torch.manual_seed(0)
    near, far = (
        VRFConfig(basis_gap=gap).build(Dims(DIM, 4)).loss(episodes(0, VRFConfig()), 0.5).parts["separation"]
        for gap in (0.1, 5.0)
    )
    assert 0 <= far < near <= 1


@pytest.mark.parametrize("prior", ["mixture", "normal"])
def test_the_latent_is_the_users_gaussian_and_its_distance_from_the_prior(
    prior: Literal["mixture", "normal"],
) -> None:
    model, context = built(VRFConfig(prior=prior, latent=10)).requires_grad_(False), pairs(0)
    assert isinstance(model, VRF)
    latent = model.latent(model.encode(context), context.mask_BP)
    mean, var = model.infer(model.encode(context), context.mask_BP).chunk(2, -1)
    assert torch.equal(latent.code_BL, mean)
    assert torch.equal(latent.mean_BL, mean)
    assert torch.equal(latent.var_BL, var)
    means, variances = model.basis_mean_KL, (2 * model.basis_log_std_KL).exp()
    if prior == "normal":
        means, variances = torch.zeros(1, 10), torch.ones(1, 10)
    noise = torch.randn(20_000, 4, 10, generator=torch.Generator().manual_seed(0))
    sampled = kl_to_mixture_sampled(mean, var, means, variances, noise)
    if prior == "normal":
        torch.testing.assert_close(latent.kl_B, sampled, rtol=0.02, atol=0.05)
    # A bound from above, and no looser than the price of naming one of the K components.
    assert bool((latent.kl_B > sampled - 0.05).all())
    assert bool((latent.kl_B < sampled + math.log(len(means)) + 0.05).all())


def test_a_space_too_narrow_for_the_bases_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least bases"):
        VRFConfig(bases=40)


def test_doubt_is_the_spread_over_the_users_gaussian_and_comparisons_narrow_it() -> None:
    torch.manual_seed(0)
    model = VRFConfig().build(Dims(12, 4)).eval()
    chosen_ND, rejected_ND = torch.randn(2, 30, 12)
    evidence_BPE = model.evidence(chosen_ND, rejected_ND).expand(2, -1, -1)
    mask_BP = torch.zeros(2, 30)
    mask_BP[1] = 1.0
    user_BZ = model.infer(evidence_BPE, mask_BP)
    chosen_BNF, rejected_BNF = (model.item(torch.randn(40, 12)).expand(2, -1, -1) for _ in range(2))
    doubt_BN = model.doubt(chosen_BNF, rejected_BNF, user_BZ)
    assert bool((doubt_BN >= 0).all())
    assert doubt_BN[1].mean() < 0.5 * doubt_BN[0].mean()
    torch.testing.assert_close(doubt_BN, model.doubt(rejected_BNF, chosen_BNF, user_BZ))
