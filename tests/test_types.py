from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypref.types import Dims, Episodes, Pairs, Reward


def pairs(users: int = 2, comparisons: int = 3, dim: int = 4) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, users, comparisons, dim, generator=generator)
    mask_BP = torch.ones(users, comparisons)
    mask_BP[0, -1] = 0
    return Pairs(chosen, rejected, mask_BP)


def equal(a: Pairs, b: Pairs) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("chosen_BPD", "rejected_BPD", "mask_BP")
    )


def test_swapping_twice_gives_the_pairs_back() -> None:
    one = pairs()
    assert equal(one.swap().swap(), one)
    assert torch.equal(one.swap().chosen_BPD, one.rejected_BPD)
    assert torch.equal(one.swap().mask_BP, one.mask_BP)


def test_padding_is_not_counted_and_weights_count_once() -> None:
    one = pairs()
    assert one.comparisons == one.swap().comparisons == 5
    assert Pairs(one.chosen_BPD, one.rejected_BPD, 0.25 * one.mask_BP).comparisons == 5


def test_moving_to_a_device_keeps_the_values() -> None:
    one = Episodes(pairs(), pairs().swap(), torch.tensor([4, 7]))
    moved = one.to(torch.device("cpu"))
    assert equal(moved.context, one.context)
    assert equal(moved.target, one.target)
    assert torch.equal(moved.user_B, one.user_B)


finite = st.floats(-20, 20)
variance = st.floats(0, 1e4)


@given(finite, variance)
def test_a_probability_and_that_of_the_opposite_make_one(mean: float, var: float) -> None:
    there, back = (
        float(Reward(torch.tensor([[m]]), torch.tensor([[var]])).probability_BN()) for m in (mean, -mean)
    )
    assert 0 <= there <= 1
    assert there + back == pytest.approx(1, abs=1e-6)


@given(finite, variance, variance)
def test_more_variance_is_closer_to_a_coin_and_never_turns_the_preference(
    mean: float, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    logits = [Reward(torch.tensor([[mean]]), torch.tensor([[var]])).logit_BN().item() for var in (less, more)]
    assert abs(logits[1]) <= abs(logits[0]) + 1e-6
    assert all(logit * mean >= 0 for logit in logits)


def test_without_variance_the_logit_is_the_mean() -> None:
    mean_BN = torch.tensor([[-1.0, 0.0, 3.0]])
    assert torch.equal(Reward(mean_BN).logit_BN(), mean_BN)
    assert torch.equal(Reward(mean_BN).probability_BN(), torch.sigmoid(mean_BN))
    assert torch.equal(Reward(mean_BN, torch.zeros(1, 3)).logit_BN(), mean_BN)


@pytest.mark.parametrize(("mean", "var"), [(0.7, 0.5), (2.0, 4.0), (-1.5, 9.0)])
def test_the_probability_is_the_average_over_the_gaussian(mean: float, var: float) -> None:
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    values = torch.sigmoid(mean + math.sqrt(var) * grid) * density
    exact = float(torch.trapezoid(values, grid))
    found = float(Reward(torch.tensor([[mean]]), torch.tensor([[var]])).probability_BN())
    assert found == pytest.approx(exact, abs=0.02)


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Dims(4, 2).users = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        pairs().mask_BP = torch.zeros(1)  # type: ignore[misc]
