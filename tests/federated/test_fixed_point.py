from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raypref.errors import AggregationError
from raypref.federated.fixed_point import FixedPoint


def summed(fixed: FixedPoint, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return fixed.decode(np.sum([fixed.encode(vector) for vector in vectors], 0, dtype=np.uint64))


@given(
    clients=st.integers(1, 40),
    bound=st.floats(1e-300, 1e300) | st.sampled_from([1.0, 2.0, 0.1, 1e-4]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_the_sum_has_the_bits_of_the_floats_added_in_any_order(clients: int, bound: float, seed: int) -> None:
    fixed, random = FixedPoint(clients, bound), np.random.default_rng(seed)
    vectors = random.uniform(-bound / 2, bound / 2, (clients, 30)) * 2
    vectors[:, 0], vectors[:, 1] = bound, -bound
    rounded = np.array([fixed.decode(fixed.encode(vector)) for vector in vectors])
    assert np.abs(rounded - vectors).max() <= math.ldexp(0.5, -fixed.bits)
    total = summed(fixed, vectors)
    for _ in range(3):
        added = np.zeros(30)
        for vector in rounded[random.permutation(clients)]:
            added += vector
        assert (total == added).all()


def test_it_is_as_fine_as_a_sum_in_53_bits_allows() -> None:
    for clients, bound in ((1, 1.0), (100, 1.0), (100, 1e-3), (2**20, 7.5)):
        largest = clients * math.ldexp(bound, FixedPoint(clients, bound).bits)
        assert 2**50 <= largest < 2**53


@pytest.mark.parametrize("bad", [1.0000001, -2.0, math.inf, math.nan])
def test_a_number_beyond_the_bound_is_refused(bad: float) -> None:
    with pytest.raises(AggregationError, match=r"Number 2 .* only up to ±1"):
        FixedPoint(10, 1.0).encode(np.array([0.0, 1.0, bad, -1.0]))


def test_a_sum_that_cannot_be_is_refused() -> None:
    fixed = FixedPoint(10, 1.0)
    largest = summed(fixed, np.ones((10, 1))).item()
    assert largest == 10.0
    for wrong in (11, -11):
        with pytest.raises(AggregationError, match="larger than it can be"):
            fixed.decode(np.array([wrong << fixed.bits], np.int64).view(np.uint64))


def test_impossible_formats_are_refused() -> None:
    for clients, bound in ((0, 1.0), (10, 0.0), (10, math.inf), (10, math.nan), (2**40, 1.0)):
        with pytest.raises(ValueError, match="No fixed point"):
            FixedPoint(clients, bound)
