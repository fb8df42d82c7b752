from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from raypref.federated.accountant import Accountant, calibrate


def analytic(multiplier: float, delta: float, rounds: int = 1) -> float:
    """Return ε of Gaussian noise without sampling (Balle and Wang 2018, arXiv 1805.06530, theorem 8)."""
    # Gaussian mechanisms compose to one with the noise of a single one over sqrt(rounds).
    width = math.sqrt(rounds) / multiplier

    def excess(epsilon: float) -> float:
        tail = math.exp(epsilon + norm.logcdf(-width / 2 - epsilon / width))
        return float(norm.cdf(width / 2 - epsilon / width) - tail - delta)

    return float(brentq(excess, 0, 500))


@pytest.mark.parametrize(("multiplier", "rounds"), [(0.7, 1), (1.0, 1), (4.0, 1), (2.0, 10), (10.0, 100)])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_without_sampling_it_is_the_analytic_gaussian(multiplier: float, rounds: int, delta: float) -> None:
    exact = analytic(multiplier, delta, rounds)
    found = Accountant(1.0, multiplier, delta).epsilon(rounds)
    assert exact - 1e-9 <= found <= exact * 1.002


def test_known_value_of_deep_learning_with_differential_privacy() -> None:
    # Abadi et al. 2016 (arXiv 1607.00133): ε ≈ 1.26 by the moments accountant, an upper bound.
    assert 0.9 < Accountant(0.01, 4.0, 1e-5).epsilon(10_000) < 1.26


@pytest.mark.parametrize(("q", "multiplier", "rounds"), [(0.01, 4.0, 10_000), (0.005, 2.0, 20_000)])
def test_many_rounds_come_near_their_limit(q: float, multiplier: float, rounds: int) -> None:
    # One Gaussian mechanism ("Deep learning with Gaussian differential privacy", arXiv 1911.11607).
    limit = analytic(1 / (q * math.sqrt(rounds * math.expm1(multiplier**-2))), 1e-5)
    assert Accountant(q, multiplier, 1e-5).epsilon(rounds) == pytest.approx(limit, rel=0.01)


def test_one_round_of_sampling_is_amplified_as_the_theorem_says() -> None:
    # δ(log(1 + q(e^ε − 1))) = q · δ(ε) (Balle, Barthe and Gaboardi 2018, arXiv 1807.01647).
    q, multiplier, delta = 0.2, 1.0, 1e-5
    exact = math.log1p(q * math.expm1(analytic(multiplier, delta / q)))
    assert Accountant(q, multiplier, delta).epsilon(1) == pytest.approx(exact, rel=1e-4)


def test_it_grows_with_rounds_and_sampling_and_falls_with_noise_and_delta() -> None:
    base = Accountant(0.05, 1.0, 1e-5)
    assert base.epsilon(0) == 0.0
    assert base.epsilon(1) < base.epsilon(10) < base.epsilon(11) < base.epsilon(100)
    assert base.epsilon(10) < Accountant(0.1, 1.0, 1e-5).epsilon(10)
    assert base.epsilon(10) > Accountant(0.05, 1.5, 1e-5).epsilon(10)
    assert base.epsilon(10) > Accountant(0.05, 1.0, 1e-4).epsilon(10)


def test_without_noise_there_is_no_privacy_but_before_the_first_round() -> None:
    bare = Accountant(0.05, 0.0, 1e-5)
    assert bare.epsilon(0) == 0.0
    assert bare.epsilon(1) == math.inf


@pytest.mark.parametrize(("q", "rounds", "epsilon"), [(1.0, 1, 1.0), (0.1, 50, 8.0), (0.01, 100, 1.0)])
def test_calibrated_noise_just_suffices(q: float, rounds: int, epsilon: float) -> None:
    multiplier = calibrate(q, rounds, epsilon, 1e-5)
    assert Accountant(q, multiplier, 1e-5).epsilon(rounds) <= epsilon
    assert Accountant(q, multiplier - 2e-4, 1e-5).epsilon(rounds) > epsilon
    if q == 1:
        assert analytic(multiplier, 1e-5, rounds) == pytest.approx(epsilon, rel=1e-3)


def test_numbers_out_of_range_are_refused() -> None:
    for q in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="sampling probability"):
            Accountant(q, 1.0, 1e-5)
    for multiplier in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="noise multiplier"):
            Accountant(0.1, multiplier, 1e-5)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match="δ must be"):
            calibrate(0.1, 10, 1.0, delta)
    for rounds, epsilon in ((0, 1.0), (1, 0.0), (1, math.inf)):
        with pytest.raises(ValueError, match="No noise gives"):
            calibrate(0.1, rounds, epsilon, 1e-5)
