from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raypref.config import PrepareConfig
from raypref.data.splits import COLD, SPLITS, TRAIN, VALID, WARM, Splitter, keys_of, mix
from raypref.schema import content_hash

KEYS = keys_of([content_hash(str(n)) for n in range(20_000)])


def shares(code: np.ndarray) -> list[float]:
    return [float((code == each).mean()) for each in range(len(SPLITS))]


def test_shares_are_kept() -> None:
    splitter = Splitter(PrepareConfig(unseen_share=0.3, cold_share=0.2, warm_share=0.25, valid_share=0.1))
    assert abs(splitter.seen(KEYS).mean() - 0.7) < 0.01
    user = np.repeat(KEYS[:200], 100)
    unit = np.tile(KEYS[:1000:10], 200)
    seen = shares(splitter.split(user, np.ones(len(user), bool), unit))
    unseen = shares(splitter.split(user, np.zeros(len(user), bool), unit))
    cold = seen[COLD]
    np.testing.assert_allclose(seen, np.array([0.65, 0.1, 0.25, 0]) * (1 - cold) + [0, 0, 0, cold], atol=0.01)
    assert unseen[VALID] == 0
    assert np.isclose(unseen[TRAIN], seen[TRAIN] + seen[VALID])
    assert unseen[WARM] == seen[WARM]
    every = splitter.split(KEYS, np.ones(len(KEYS), bool), KEYS)
    assert abs(shares(every)[COLD] - 0.2) < 0.01


def test_a_cold_unit_is_cold_for_everybody() -> None:
    splitter = Splitter(PrepareConfig(cold_share=0.5))
    code = splitter.split(np.repeat(KEYS[:50], 50), np.ones(2500, bool), np.tile(KEYS[:50], 50)).reshape(
        50, 50
    )
    cold = code == COLD
    assert (cold == cold[0]).all()
    assert 0 < cold[0].sum() < 50


def test_seeds_and_purposes_are_independent() -> None:
    a, b = Splitter(PrepareConfig(seed=0)), Splitter(PrepareConfig(seed=1))
    for left, right in ((a.seen(KEYS), b.seen(KEYS)), (a.seen(KEYS), a.bucket(KEYS) % 2 == 0)):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.03
    assert np.bincount(a.bucket(KEYS), minlength=64).min() > 200


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_mixing_keeps_sides_apart(left: int, right: int) -> None:
    a, b = np.array([left], np.uint64), np.array([right], np.uint64)
    assert mix(a, b) == mix(a, b)
    assert left == right or (mix(a, b) != mix(b, a)).all()
