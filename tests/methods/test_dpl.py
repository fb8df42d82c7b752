from __future__ import annotations

import itertools
import math

import pytest
import torch

from raypref.methods import DPLConfig
from raypref.types import Dims, Episodes
from tests.methods.contract import DIM, Contract, built, pairs

NOBODY = torch.zeros(4, 0)


class TestDPL(Contract):
    config = DPLConfig()
    gains_on_bt_at_8 = -0.01


class TestCategoricalDPL(Contract):
    config = DPLConfig(head="categorical")
    gains_on_bt_at_8 = -0.01


def test_items_of_one_variance_are_bt() -> None:
    """The start of the spread is where the logistic stand-in for the normal distribution is Bradley–Terry."""
    torch.manual_seed(0)
    model = DPLConfig().build(Dims(DIM, 4))
    with torch.no_grad():
        model.get_parameter("heads_FD")[0].normal_()
        model.get_parameter("heads_FD")[1].zero_()
        margin = model(pairs(0), NOBODY)
    torch.testing.assert_close(margin.logit_BN(), margin.mean_BN)


def test_the_gaussian_link_is_close_to_the_normal_distribution() -> None:
    model = built(DPLConfig())
    margin = model(pairs(0), NOBODY)
    assert margin.var_BN is not None
    exact_BP = torch.special.ndtr(margin.mean_BN / margin.var_BN.sqrt())
    # σ(√(2π)·t) has Φ's slope at 0 and is off by 0.042 at most.
    torch.testing.assert_close(margin.probability_BN(), exact_BP, atol=0.042, rtol=0.0)


def test_disputed_items_are_told_apart_less_surely() -> None:
    torch.manual_seed(0)
    model, target = DPLConfig().build(Dims(DIM, 4)), pairs(0)
    item_BNF = model.item(target.chosen_BPD), model.item(target.rejected_BPD)
    sure = model.margin(*item_BNF, NOBODY)
    doubt = torch.tensor([1.0, 4.0])
    unsure = model.margin(item_BNF[0] * doubt, item_BNF[1] * doubt, NOBODY)
    torch.testing.assert_close(unsure.logit_BN(), sure.logit_BN() / 2.0)


def test_the_categorical_chance_counts_every_pair_of_atoms() -> None:
    model, target = built(DPLConfig(head="categorical", atoms=4)), pairs(0, comparisons=3)
    chosen_BPA, rejected_BPA = model.item(target.chosen_BPD), model.item(target.rejected_BPD)
    expected_BP = torch.zeros(4, 3)
    for above, below in itertools.product(range(4), range(4)):
        share = 1.0 if above > below else 0.5 if above == below else 0.0
        expected_BP += share * chosen_BPA[..., above] * rejected_BPA[..., below]
    torch.testing.assert_close(model(target, NOBODY).probability_BN(), expected_BP)


def test_moments_are_those_of_the_atoms() -> None:
    model = built(DPLConfig(head="categorical", atoms=3))
    certain_BNF = torch.tensor([[[0.0, 0.0, 1.0], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    reward = model.reward(certain_BNF, NOBODY[:1])
    assert reward.var_BN is not None
    torch.testing.assert_close(reward.mean_BN, torch.tensor([[1.0, 0.5, 0.5]]))
    torch.testing.assert_close(reward.var_BN, torch.tensor([[0.0, 0.25, 0.0]]))


def test_certain_items_give_a_finite_logit() -> None:
    model = built(DPLConfig(head="categorical", atoms=3))
    top, bottom = torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
    margin = model.margin(top, bottom, NOBODY[:1])
    assert 50.0 < float(margin.logit_BN()) < math.inf


@pytest.mark.parametrize("variance", [0.0, 0.5])
def test_the_variance_penalty_is_the_mean_variance_of_a_comparison(variance: float) -> None:
    torch.manual_seed(0)
    model, batch = DPLConfig(variance=variance).build(Dims(DIM, 4)), pairs(0)
    margin = model(batch, NOBODY)
    assert margin.var_BN is not None
    loss = model.loss(Episodes(pairs(1), batch, torch.arange(4)), 0.5)
    torch.testing.assert_close(loss.parts["shape"], variance * margin.var_BN.mean().detach())


def test_the_average_items_entropy_is_rewarded() -> None:
    """Before training all atoms are equally likely: the most entropy there can be."""
    model = DPLConfig(head="categorical", atoms=8, entropy=0.1).build(Dims(DIM, 4))
    loss = model.loss(Episodes(pairs(1), pairs(0), torch.arange(4)), 0.5)
    assert loss.parts["shape"].item() == pytest.approx(-0.1 * math.log(8.0))
