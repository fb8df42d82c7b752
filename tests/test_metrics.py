from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raypref import metrics
from raypref.metrics import Ranking, Reliability, Spread, bootstrap, mutual_information

LOGITS = arrays(np.float64, st.integers(1, 60), elements=st.floats(-20, 20, width=32))
CODES = arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-20, 20, width=32))


def users_of(logit_M: np.ndarray) -> np.ndarray:
    return np.arange(len(logit_M)) % 7


@given(LOGITS)
def test_everything_is_in_bounds(logit_M: np.ndarray) -> None:
    assert 0 <= metrics.accuracy_per_pair(logit_M) <= 1
    assert 0 <= metrics.accuracy_per_user(logit_M, users_of(logit_M)) <= 1
    assert (metrics.nll(logit_M) >= 0).all()
    assert ((metrics.confidence(logit_M) >= 0.5) & (metrics.confidence(logit_M) <= 1)).all()
    assert 0 <= Reliability.of(logit_M).ece() <= 1


@given(LOGITS, st.randoms(use_true_random=False))
def test_order_does_not_matter(logit_M: np.ndarray, random: Random) -> None:
    order = np.array(random.sample(range(len(logit_M)), len(logit_M)))
    user_M, hit_M, doubt_M = users_of(logit_M), logit_M > 0, 1 - metrics.confidence(logit_M)
    assert metrics.accuracy_per_pair(logit_M[order]) == metrics.accuracy_per_pair(logit_M)
    assert metrics.accuracy_per_user(logit_M[order], user_M[order]) == pytest.approx(
        metrics.accuracy_per_user(logit_M, user_M)
    )
    assert Reliability.of(logit_M[order]).ece() == pytest.approx(Reliability.of(logit_M).ece())
    assert Ranking.of(doubt_M[order], hit_M[order]).quantiles(5) == Ranking.of(doubt_M, hit_M).quantiles(5)


@given(LOGITS, st.integers(0, 60))
def test_tallies_of_parts_add_up(logit_M: np.ndarray, cut: int) -> None:
    first, second = logit_M[:cut], logit_M[cut:]
    whole = Reliability.of(logit_M)
    assert (Reliability.of(first) + Reliability.of(second)).ece() == pytest.approx(whole.ece())
    parts = Ranking.of(np.abs(first), first > 0) + Ranking.of(np.abs(second), second > 0)
    np.testing.assert_array_equal(parts.hits_X, Ranking.of(np.abs(logit_M), logit_M > 0).hits_X)
    assert sum(b.count for b in whole.table()) == len(logit_M)


@given(LOGITS)
def test_swapping_every_comparison_swaps_hits(logit_M: np.ndarray) -> None:
    ties = (logit_M == 0).mean()
    assert metrics.accuracy_per_pair(logit_M) + metrics.accuracy_per_pair(-logit_M) == pytest.approx(1 - ties)


def test_a_tie_is_wrong() -> None:
    assert metrics.accuracy_per_pair([0.0, 0.0, 1.0, -1.0]) == 0.25
    assert metrics.nll([0.0])[0] == pytest.approx(math.log(2))
    # It claims nothing, so it is calibrated.
    assert Reliability.of(np.zeros(9)).ece() == 0


def test_users_weigh_the_same_and_pairs_weigh_the_same() -> None:
    logit_M, user_M = [1.0, 1.0, 1.0, -1.0], [5, 5, 5, 2]
    assert metrics.accuracy_per_user(logit_M, user_M) == 0.5
    assert metrics.accuracy_per_pair(logit_M) == 0.75
    user_U, mean_U = metrics.mean_per_user(logit_M, user_M)
    assert user_U.tolist() == [2, 5]
    assert mean_U.tolist() == [-1, 1]


def test_nll_is_stable_far_from_zero() -> None:
    np.testing.assert_allclose(metrics.nll([-800.0, 800.0]), [800.0, 0.0])


def test_a_calibrated_model_has_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    logit_M = rng.normal(0, 2, 200_000)
    chosen_first = rng.random(logit_M.size) < 1 / (1 + np.exp(-logit_M))
    told_M = np.where(chosen_first, logit_M, -logit_M)
    assert Reliability.of(told_M).ece() < 0.005
    assert Reliability.of(3 * told_M).ece() > 0.05


def test_ece_by_hand() -> None:
    # Confidence 0.9 and right 3 times of 4; confidence 0.6 and right 1 time of 2.
    sure, unsure = math.log(9), math.log(1.5)
    found = Reliability.of([sure, sure, sure, -sure, unsure, -unsure])
    assert found.ece() == pytest.approx(4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0.5 - 0.6))
    assert [(b.count, round(b.accuracy, 6)) for b in found.table()] == [(2, 0.5), (4, 0.75)]


def test_selective_accuracy_by_hand() -> None:
    ranking = Ranking.of([0.1, 0.2, 0.3, 0.4], [True, True, False, True])
    np.testing.assert_allclose(ranking.selective_accuracy([0.25, 0.5, 0.75, 1.0]), [1, 1, 2 / 3, 3 / 4])
    low, high = ranking.quantiles(2)
    assert (low.accuracy, high.accuracy) == (1.0, 0.5)
    assert low.uncertainty == pytest.approx(0.15, rel=1e-3)
    assert high.uncertainty == pytest.approx(0.35, rel=1e-3)


def test_equal_uncertainty_has_no_order() -> None:
    ranking = Ranking.of([1.0] * 4, [True, False, False, False])
    np.testing.assert_allclose(ranking.selective_accuracy([0.1, 0.5, 1.0]), 0.25)
    np.testing.assert_allclose([b.accuracy for b in ranking.quantiles(3)], 0.25)


@given(LOGITS)
def test_accepting_everything_is_the_accuracy(logit_M: np.ndarray) -> None:
    ranking = Ranking.of(np.abs(logit_M), logit_M > 0)
    assert ranking.selective_accuracy([1.0])[0] == pytest.approx(metrics.accuracy_per_pair(logit_M))


@given(CODES, st.integers(0, 30))
def test_the_spread_of_parts_adds_up(code_UL: np.ndarray, cut: int) -> None:
    parts = Spread.of(code_UL[:cut]) + Spread.of(code_UL[cut:])
    assert parts.count == len(code_UL)
    np.testing.assert_allclose(parts.mean_L, code_UL.mean(0), atol=1e-12)
    np.testing.assert_allclose(parts.square_L / parts.count, code_UL.var(0), rtol=1e-9, atol=1e-12)


def test_active_is_a_unit_that_differs_between_users() -> None:
    same, hardly, clearly = np.full(100, 1e6), 1e6 + 0.01 * np.arange(100) / 100, 1e6 + np.arange(100) % 2
    code_UL = np.stack([same, hardly, clearly], 1)
    batches = [Spread.of(part) for part in np.split(code_UL, 20)]
    whole = sum(batches[1:], batches[0])
    assert whole.active_units(0.005) == Spread.of(code_UL).active_units(0.005) == 1
    assert whole.active_units(1e-6) == 2
    assert whole.active_units(0.25) == 0
    assert Spread.of(code_UL[:1]).active_units(1e-9) == 0


def test_posteriors_that_are_all_one_tell_nothing() -> None:
    assert mutual_information(np.ones((50, 4)), np.full((50, 4), 0.3)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("width", [1e-6, 1e-3])
def test_users_that_never_overlap_are_all_told_apart(width: float) -> None:
    mean_UL = 1e3 + np.random.default_rng(0).normal(size=(64, 5))
    assert mutual_information(mean_UL, np.full_like(mean_UL, width**2)) == pytest.approx(math.log(64))


def test_mutual_information_of_gaussian_users() -> None:
    """Means N(0, s²) under posteriors N(μ, 1): the mixture is N(0, 1 + s²), so I = L/2·log(1 + s²)."""
    mean_UL = np.random.default_rng(1).normal(size=(1000, 2)) * 2
    exact = math.log(1 + 4)
    assert mutual_information(mean_UL, np.ones_like(mean_UL)) == pytest.approx(exact, abs=0.06)
    apart = mutual_information(mean_UL[:40] + 7, np.ones((40, 2)))
    assert apart == pytest.approx(mutual_information(mean_UL[:40], np.ones((40, 2))))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_becomes_a_number(bad: float) -> None:
    for measure in (metrics.hits, metrics.nll, metrics.confidence, metrics.accuracy_per_pair, Reliability.of):
        with pytest.raises(ValueError, match="1 of 2 logits are not finite, first number 1"):
            measure([1.0, bad])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap([0.5, bad])
    with pytest.raises(ValueError, match="not finite"):
        Ranking.of([bad], [True])


def test_impossible_input_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Ranking.of([-0.1], [True])
    with pytest.raises(ValueError, match="no users"):
        bootstrap([])
    with pytest.raises(ValueError, match="variance is not positive"):
        mutual_information([[0.0], [1.0]], [[1.0], [0.0]])
    with pytest.raises(ValueError, match="1 of 2 codes are not finite"):
        Spread.of([[0.0], [math.nan]])


@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)), st.integers(0, 5))
def test_an_interval_holds_its_mean_and_stays_among_the_values(value_U: np.ndarray, seed: int) -> None:
    estimate = bootstrap(value_U, 50, 0.9, seed)
    tiny = 1e-12
    assert value_U.min() - tiny <= estimate.low <= estimate.high <= value_U.max() + tiny
    assert estimate == bootstrap(value_U, 50, 0.9, seed)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        estimate = bootstrap(rng.binomial(20, 0.7, 80) / 20, 300, 0.9, trial)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.84 < covered / 300 < 0.95


def test_the_bootstrap_has_the_spread_of_drawing_users() -> None:
    value_U = np.random.default_rng(1).random(200)
    estimate = bootstrap(value_U, 4000, 0.95)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * value_U.std() / math.sqrt(200), rel=0.06)


def test_blocks_of_resamples_are_an_implementation_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    value_U = np.random.default_rng(2).random(50)
    whole = bootstrap(value_U, 100)
    monkeypatch.setattr(metrics, "BOOTSTRAP_CELLS", 64)
    blocks = bootstrap(value_U, 100)
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high))


def test_one_user_has_an_interval_without_width() -> None:
    assert bootstrap([0.75]) == metrics.Estimate(0.75, 0.75, 0.75)
