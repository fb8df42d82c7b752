from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypref.data.episodes import EpisodeSampler, pad
from raypref.data.tables import Comparisons
from raypref.errors import InputError
from raypref.methods.base import Recipe
from raypref.types import Episodes, Pairs


def gather(ids_N: np.ndarray) -> np.ndarray:
    """Embed item k as (k, -k), exact in float16 for small k."""
    return np.stack([ids_N, -ids_N], axis=1).astype(np.float16)


def made(counts: list[int]) -> Comparisons:
    """Comparison k prefers item 2k + 1 to item 2k + 2 and weighs k + 1; user u stands in row 10 + u."""
    user = np.repeat(np.arange(len(counts)), counts)
    pair = np.arange(len(user))
    columns = {
        "user": user,
        "pair_id": pair,
        "chosen": 2 * pair + 1,
        "rejected": 2 * pair + 2,
        "weight": pair + 1,
    }
    return Comparisons.from_batches([columns], 10 + np.arange(len(counts)))


def numbers(pairs: Pairs) -> list[list[int]]:
    """Return the comparisons of each user, checked to be whole."""
    pair_BP = pairs.mask_BP - 1
    valid = pairs.mask_BP > 0
    assert torch.equal(pairs.chosen_BPD[..., 0], torch.where(valid, 2 * pair_BP + 1, 0))
    assert torch.equal(pairs.rejected_BPD[..., 0], torch.where(valid, 2 * pair_BP + 2, 0))
    return [[int(k) for k in row[keep]] for row, keep in zip(pair_BP, valid, strict=True)]


def equal(left: Episodes, right: Episodes) -> bool:
    return torch.equal(left.user_B, right.user_B) and all(
        torch.equal(getattr(getattr(left, part), name), getattr(getattr(right, part), name))
        for part in ("context", "target")
        for name in ("chosen_BPD", "rejected_BPD", "mask_BP")
    )


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    context=st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted),
    targets=st.integers(1, 6),
    users_per_step=st.integers(1, 12),
    step=st.integers(0, 10**6),
)
def test_context_and_targets_are_disjoint_parts_of_one_user(
    counts: list[int], context: list[int], targets: int, users_per_step: int, step: int
) -> None:
    comparisons = made(counts)
    recipe = Recipe(users_per_step=users_per_step, context=(context[0], context[1]), targets=targets)
    episodes = EpisodeSampler(comparisons, gather, recipe, seed=3).episodes(step)
    size = min(users_per_step, len(counts))
    assert episodes.user_B.shape == (size,)
    assert episodes.user_B.dtype == torch.int64
    assert episodes.context.chosen_BPD.shape == (size, min(context[1], max(counts) - 1), 2)
    assert episodes.target.chosen_BPD.shape == (size, min(targets, max(counts)), 2)
    assert episodes.target.chosen_BPD.dtype == torch.float32
    for row, seen, scored in zip(
        episodes.user_B.tolist(), numbers(episodes.context), numbers(episodes.target), strict=True
    ):
        own = range(*comparisons.offsets[row - 10 : row - 8])
        count = len(own)
        assert len({*seen, *scored}) == len(seen) + len(scored)
        assert {*seen, *scored} <= set(own)
        assert min(context[0], count - 1) <= len(seen) <= min(context[1], count - 1)
        assert len(scored) == min(targets, count - len(seen)) >= 1


def test_an_epoch_visits_every_user_once_in_an_order_of_its_own() -> None:
    sampler = EpisodeSampler(made([2] * 12), gather, Recipe(users_per_step=4), seed=0)
    epochs = [
        [r for step in range(3 * e, 3 * e + 3) for r in sampler.episodes(step).user_B.tolist()]
        for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10, 22))
    assert epochs[0] != epochs[1]


def test_steps_span_epochs_without_losing_users() -> None:
    sampler = EpisodeSampler(made([2] * 7), gather, Recipe(users_per_step=5), seed=0)
    visited = [row for step in range(7) for row in sampler.episodes(step).user_B.tolist()]
    assert all(sorted(visited[first : first + 7]) == list(range(10, 17)) for first in range(0, 35, 7))


def test_a_step_depends_on_seed_rank_and_number_alone() -> None:
    comparisons, recipe = made([5, 3, 9, 4]), Recipe(users_per_step=3, context=(1, 4))
    first = EpisodeSampler(comparisons, gather, recipe, seed=1)
    later = EpisodeSampler(comparisons, gather, recipe, seed=1)
    for step in (9, 2, 2, 100):
        first.episodes(step)
    assert all(equal(first.episodes(step), later.episodes(step)) for step in (5, 0, 77))
    for other in (
        EpisodeSampler(comparisons, gather, recipe, seed=2),
        EpisodeSampler(comparisons, gather, recipe, seed=1, rank=1),
    ):
        assert not equal(first.episodes(5), other.episodes(5))


def test_context_sizes_are_even_over_the_recipes_range() -> None:
    sampler = EpisodeSampler(made([9] * 50), gather, Recipe(users_per_step=50, context=(1, 4)), seed=0)
    sizes = torch.cat([(sampler.episodes(step).context.mask_BP > 0).sum(1) for step in range(40)])
    count = torch.bincount(sizes, minlength=6).tolist()
    assert count[0] == count[5] == 0
    assert all(400 < each < 600 for each in count[1:5])


def test_every_comparison_is_as_likely_a_target_as_any_other() -> None:
    sampler = EpisodeSampler(made([10]), gather, Recipe(users_per_step=1, targets=3), seed=0)
    drawn = [k for step in range(1000) for k in numbers(sampler.episodes(step).target)[0]]
    assert all(220 < count < 380 for count in np.bincount(drawn, minlength=10))


@pytest.mark.parametrize(("world_size", "users"), [(1, 9), (2, 5), (4, 3)])
def test_workers_share_the_users_of_a_step(world_size: int, users: int) -> None:
    recipe = Recipe(users_per_step=9)
    sampler = EpisodeSampler(made([2] * 20), gather, recipe, seed=0, rank=0, world_size=world_size)
    assert len(sampler.episodes(0).user_B) == users


def test_the_stream_starts_anywhere_and_stops_its_thread() -> None:
    sampler = EpisodeSampler(made([4] * 6), gather, Recipe(users_per_step=2, context=(0, 2)), seed=0)
    stream = sampler.stream(3)
    assert all(equal(got, sampler.episodes(3 + n)) for n, got in enumerate(itertools.islice(stream, 8)))
    assert any(thread.name == "episodes" for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name == "episodes" for thread in threading.enumerate())


def test_a_step_that_is_kept_is_not_written_over_and_one_that_is_not_makes_room() -> None:
    recipe = Recipe(users_per_step=2, context=(0, 2))
    sampler, fresh = (EpisodeSampler(made([4] * 6), gather, recipe, seed=0) for _ in range(2))
    # A part of a step keeps the whole of it.
    kept = [sampler.episodes(step).target.rejected_BPD[1:] for step in range(5)]
    assert all(
        torch.equal(part, fresh.episodes(step).target.rejected_BPD[1:]) for step, part in enumerate(kept)
    )
    assert len({part.data_ptr() for part in kept}) == 5
    places = {part.data_ptr() for part in kept}
    kept.clear()
    assert {sampler.episodes(step).target.rejected_BPD[1:].data_ptr() for step in range(5)} <= places


def test_an_error_in_the_background_reaches_the_reader() -> None:
    def broken(ids_N: np.ndarray) -> np.ndarray:
        raise InputError("gone")

    with pytest.raises(InputError, match="gone"):
        next(EpisodeSampler(made([4]), broken, Recipe(), seed=0).stream())


def test_nothing_to_sample_is_an_error() -> None:
    for comparisons in (made([]), made([2]).select(np.array([0, 5]))):
        with pytest.raises(InputError, match="worker 1 of 2"):
            EpisodeSampler(comparisons, gather, Recipe(), seed=0, rank=1, world_size=2)


def test_padding_keeps_order_and_weights() -> None:
    comparisons = made([3, 1, 5]).select(np.array([0, 7, 1, 2]))
    chosen_BP, rejected_BP, mask_BP = pad(comparisons, np.array([3, 1, 0]), limit=4)
    assert chosen_BP.tolist() == [[9, 11, 13, 15], [0, 0, 0, 0], [1, 3, 5, 0]]
    assert rejected_BP.tolist() == [[10, 12, 14, 16], [0, 0, 0, 0], [2, 4, 6, 0]]
    assert mask_BP.tolist() == [[5, 6, 7, 8], [0, 0, 0, 0], [1, 2, 3, 0]]
    assert mask_BP.dtype == np.float32
    assert pad(comparisons, np.array([2, 3]))[0].shape == (2, 5)
    assert pad(made([]).select(np.array([1])), np.array([0]))[0].shape == (1, 0)


def test_smaller_contexts_are_the_beginning_of_larger_ones() -> None:
    comparisons = made([6, 3, 8])
    few, many = (pad(comparisons, np.arange(3), n, np.random.default_rng(5)) for n in (2, 7))
    assert all(np.array_equal(a, b[:, :2]) for a, b in zip(few, many, strict=True))
    other = pad(comparisons, np.arange(3), 7, np.random.default_rng(6))
    assert not np.array_equal(many[0], other[0])
    assert np.array_equal(np.sort(many[0][1]), np.sort(other[0][1]))
