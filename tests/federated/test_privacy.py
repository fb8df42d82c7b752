from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from raypref.errors import DivergedError
from raypref.federated.privacy import clip, noise

SECRET = bytes(range(32))
LIKE = {"weight": torch.zeros(3, 5), "bias": torch.zeros(7)}


def norm_of(update: dict[str, Tensor]) -> float:
    return math.hypot(*(value for part in update.values() for value in part.double().flatten().tolist()))


@given(
    seed=st.integers(0, 1000),
    norm=st.floats(1e-6, 1e6),
    size=st.floats(1e-6, 1e6),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)
@settings(deadline=None)
def test_a_clipped_update_is_never_longer_and_points_the_same_way(
    seed: int, norm: float, size: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(20, generator=generator, dtype=torch.float64) * size
    update = {"a": drawn[:12].view(3, 4).to(dtype), "b": drawn[12:].float()}
    clipped, had = clip(update, norm)
    assert had == pytest.approx(norm_of(update), rel=1e-12)
    if had <= norm:
        assert all(torch.equal(clipped[name], update[name]) for name in update)
        return
    loss = 3 * max(torch.finfo(part.dtype).eps for part in update.values())
    assert norm * (1 - loss) <= norm_of(clipped) <= norm
    assert {name: (part.shape, part.dtype) for name, part in clipped.items()} == {
        name: (part.shape, part.dtype) for name, part in update.items()
    }
    torch.testing.assert_close(clipped["b"], update["b"] * (norm / had), rtol=loss, atol=1e-30)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        clip({"a": torch.ones(3), "b": torch.tensor([0.0, bad])}, 1.0)


def test_an_empty_update_has_no_length_and_a_norm_is_above_0() -> None:
    assert clip({}, 1.0) == ({}, 0.0)
    for norm in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            clip(LIKE, norm)


def test_noise_is_the_same_again_and_another_in_every_other_round_run_and_tensor() -> None:
    first = noise(LIKE, 2.0, SECRET, 3)
    again = noise(dict(reversed(LIKE.items())), 2.0, SECRET, 3)
    assert all(torch.equal(first[name], again[name]) for name in LIKE)
    assert {name: (part.shape, part.dtype) for name, part in first.items()} == {
        name: (part.shape, torch.float64) for name, part in LIKE.items()
    }
    other = noise(LIKE, 2.0, SECRET, 4) | {"secret": noise(LIKE, 2.0, bytes(32), 3)["bias"]}
    values = torch.cat([part.flatten() for part in [*first.values(), *other.values()]])
    assert len(values.unique()) == len(values)


def test_noise_is_gaussian() -> None:
    drawn = noise({"a": torch.zeros(100_001)}, 0.5, SECRET, 1)["a"].numpy()
    assert stats.kstest(drawn / 0.5, "norm").pvalue > 0.01
    assert abs(np.corrcoef(drawn[:50_000], drawn[50_001:])[0, 1]) < 0.02
    assert drawn.std() == pytest.approx(0.5, rel=0.01)
    assert not noise(LIKE, 0.0, SECRET, 1)["bias"].any()


def test_noise_needs_a_whole_secret_and_a_deviation() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        noise(LIKE, 1.0, bytes(16), 1)
    for std in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="standard deviation"):
            noise(LIKE, std, SECRET, 1)
