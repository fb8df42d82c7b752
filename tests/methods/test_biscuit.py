from __future__ import annotations

import math

import pytest
import torch

from raypref.methods import BiscuitConfig, BTConfig
from raypref.methods.biscuit import Biscuit, balanced_vote
from raypref.types import Dims, Episodes, Pairs, Peers
from tests.methods.contract import DIM, Contract, built, pairs


class TestBiscuit(Contract):
    config = BiscuitConfig()


class TestOneSelector(Contract):
    config = BiscuitConfig(selectors=1)
    gains_on_bt_at_8 = -0.005


def axes(selectors: int = 3, sharpness: float = 4.0) -> Biscuit:
    """A model whose selectors each look at one coordinate."""
    model = BiscuitConfig(selectors=selectors).build(Dims(DIM, 4))
    with torch.no_grad():
        for coordinate, head_D in enumerate(model.selectors):
            head_D.zero_()[coordinate] = sharpness
    return model.eval()


def judged_by(model: Biscuit, selector: int, users: int = 1, comparisons: int = 40) -> Pairs:
    """Comparisons of users who always agree with one selector."""
    drawn = pairs(7, users, comparisons)
    chosen_BPK, rejected_BPK = model.item(drawn.chosen_BPD), model.item(drawn.rejected_BPD)
    right_BP1 = (chosen_BPK - rejected_BPK)[..., selector : selector + 1] > 0
    swapped = drawn.swap()
    return Pairs(
        torch.where(right_BP1, drawn.chosen_BPD, swapped.chosen_BPD),
        torch.where(right_BP1, drawn.rejected_BPD, swapped.rejected_BPD),
        drawn.mask_BP,
    )


def step(target: Pairs, groups: list[int] | None = None) -> Episodes:
    """A step of users, who have groups where a server has made them."""
    users = len(target.mask_BP)
    nobody = Peers(torch.zeros(0, 3), torch.zeros(0).long(), torch.tensor(groups or []))
    return Episodes(pairs(0, users, 0), target, torch.arange(users), nobody if groups else None)


def trained(model: Biscuit, episodes: Episodes, progress: float = 0.5) -> list[int]:
    """Selectors that a step gives a gradient."""
    model.zero_grad()
    model.loss(episodes, progress).total.backward()
    return [number for number, head_D in enumerate(model.selectors) if head_D.grad is not None]


@pytest.mark.parametrize("selector", [0, 1, 2])
@torch.no_grad()
def test_a_user_belongs_to_the_selector_that_agrees_with_them(selector: int) -> None:
    model = axes()
    context = judged_by(model, selector)
    chance_BK = model.infer(model.encode(context), context.mask_BP)
    assert int(chance_BK.argmax()) == selector
    torch.testing.assert_close(chance_BK.sum(-1), torch.ones(1))


@torch.no_grad()
def test_a_user_who_swaps_every_comparison_belongs_to_the_other_selector() -> None:
    model = axes(2)
    model.selectors[1].copy_(-model.selectors[0])
    context = judged_by(model, 0)
    first, second = (model.infer(model.encode(c), c.mask_BP) for c in (context, context.swap()))
    assert int(first.argmax()) == 0
    torch.testing.assert_close(second, first.flip(-1))


def test_the_posterior_is_bayes_rule_from_equal_shares() -> None:
    model, context = built(BiscuitConfig()), pairs(3)
    margin_BPK = model.item(context.chosen_BPD) - model.item(context.rejected_BPD)
    likelihood_BK = torch.sigmoid(margin_BPK).prod(1)
    chance_BK = model.infer(model.encode(context), context.mask_BP)
    torch.testing.assert_close(chance_BK, likelihood_BK / likelihood_BK.sum(-1, keepdim=True))


@torch.no_grad()
def test_evidence_makes_users_sure() -> None:
    model = axes()
    context = judged_by(model, 1)
    entropy = []
    for shots in (0, 2, 8, 40):
        chance_BK = model.infer(model.encode(context)[:, :shots], context.mask_BP[:, :shots])
        entropy.append(float(torch.special.entr(chance_BK).sum()))
    assert entropy[0] == pytest.approx(math.log(3))
    assert entropy == sorted(entropy, reverse=True)
    assert entropy[-1] < 0.01


@torch.no_grad()
def test_a_user_nothing_is_known_of_has_the_selectors_mean() -> None:
    model, items_BND = axes(), pairs(2, users=1).chosen_BPD
    nobody = model.infer(torch.zeros(1, 0, 3), torch.zeros(1, 0))
    torch.testing.assert_close(nobody, torch.full((1, 3), 1.0 / 3.0))
    reward, item_BNK = model.reward(model.item(items_BND), nobody), model.item(items_BND)
    torch.testing.assert_close(reward.mean_BN, item_BNK.mean(-1))
    assert reward.var_BN is not None
    torch.testing.assert_close(reward.var_BN, item_BNK.var(-1, correction=0))


@torch.no_grad()
def test_a_user_of_one_selector_has_its_reward_without_doubt() -> None:
    model, item_BNK = axes(), axes().item(pairs(2, users=3).chosen_BPD)
    reward = model.reward(item_BNK, torch.eye(3))
    torch.testing.assert_close(reward.mean_BN, item_BNK.diagonal(dim1=0, dim2=2).mT)
    assert reward.var_BN is not None
    assert not reward.var_BN.any()


@torch.no_grad()
def test_the_map_has_the_selectors_at_the_corners() -> None:
    land = axes().landscape(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))
    assert land.bases_KL is not None
    assert land.var_BL is not None
    assert torch.equal(land.bases_KL[0], land.mean_BL[0])
    assert torch.equal(land.var_BL, torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.25, 0.0]]))


@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_client_trains_the_selector_of_its_group_alone(group: int) -> None:
    model = axes()
    assert trained(model, step(judged_by(model, 1), [group])) == [group]


def test_a_client_without_a_group_trains_the_selector_it_votes_for() -> None:
    model = axes()
    for selector in range(3):
        assert trained(model, step(judged_by(model, selector), [-1])) == [selector]
        assert trained(model, step(judged_by(model, selector))) == [selector]


def test_before_the_end_of_the_warm_up_a_client_trains_any_selector() -> None:
    model = axes()
    episodes = step(judged_by(model, 1), [1])
    torch.manual_seed(0)
    seen = [trained(model, episodes, progress=0.05) for _ in range(30)]
    assert {len(selectors) for selectors in seen} == {1}
    assert {selectors[0] for selectors in seen} == {0, 1, 2}


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_no_selector_starves(progress: float) -> None:
    """All users agree with one selector: the others still get their share of them."""
    model = axes()
    assert trained(model, step(judged_by(model, 1, users=6)), progress) == [0, 1, 2]


def test_users_are_averaged_whatever_their_groups() -> None:
    """A step of users is the mean of the steps of each alone, penalty and all."""
    model, target, groups = built(BiscuitConfig()), pairs(1), [0, 2, 2, 1]
    alone = [
        model.loss(step(Pairs(*(value[i : i + 1] for value in vars(target).values())), [group]), 0.5).total
        for i, group in enumerate(groups)
    ]
    together = model.loss(step(target, groups), 0.5).total
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_one_selector_is_bradley_terry() -> None:
    model, bt, episodes = built(BiscuitConfig(selectors=1)), BTConfig().build(Dims(DIM, 20)), step(pairs(1))
    state = model.state_dict()
    bt.load_state_dict({"head_D": state.pop("selectors.0"), **state})
    torch.testing.assert_close(model.loss(episodes, 0.5).total, bt.loss(episodes, 0.5).total)


@pytest.mark.parametrize(("users", "selectors"), [(1, 3), (2, 3), (3, 3), (4, 3), (10, 3), (64, 5), (7, 1)])
def test_groups_are_of_equal_size(users: int, selectors: int) -> None:
    torch.manual_seed(users)
    for favour in (0.0, 100.0):
        loglik_BK = torch.randn(users, selectors)
        loglik_BK[:, 0] += favour
        sizes = torch.bincount(balanced_vote(loglik_BK), minlength=selectors)
        assert int(sizes.sum()) == users
        assert int(sizes.max() - sizes.min()) <= 1


def test_where_votes_are_balanced_all_have_their_wish() -> None:
    group_B = torch.arange(12) % 3
    loglik_BK = torch.randn(12, 3) + 20.0 * torch.eye(3)[group_B]
    assert torch.equal(balanced_vote(loglik_BK), group_B)


def test_a_selector_keeps_those_it_is_surest_of() -> None:
    loglik_BK = torch.tensor([[0.0, -1.0], [0.0, -9.0], [0.0, -2.0], [0.0, -8.0]])
    assert torch.equal(balanced_vote(loglik_BK), torch.tensor([1, 0, 1, 0]))
