from __future__ import annotations

import numpy as np
import pytest

from raypref.config import PlantedConfig
from raypref.data import planted
from raypref.data.planted import (
    comparisons,
    embed,
    item_block,
    latent_items,
    plant,
    true_rewards,
    user_block,
    user_weights,
)
from raypref.data.splits import COLD, TRAIN, VALID

SMALL = PlantedConfig(
    dim=32, train_prompts=300, test_prompts=100, seen_users=60, unseen_users=40, comparisons=20, shots=8
)


@pytest.fixture
def blocks_of_32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "PROMPTS_PER_BLOCK", 32)
    monkeypatch.setattr(planted, "USERS_PER_BLOCK", 32)


@pytest.mark.usefixtures("blocks_of_32")
def test_a_block_alone_equals_that_block_of_the_whole() -> None:
    world = plant(SMALL)
    rewards_NR = true_rewards(world)
    items = list(latent_items(world))
    users = list(comparisons(world, rewards_NR))
    assert [len(block) for block in items] == [32 * 8] * 12 + [16 * 8]
    assert len(users) == 4
    for number in (3, 1):
        assert np.array_equal(item_block(plant(SMALL), number), items[number])
        alone = user_block(plant(SMALL), rewards_NR, number)
        assert all(np.array_equal(a, b) for a, b in zip(alone, users[number], strict=True))


@pytest.mark.usefixtures("blocks_of_32")
def test_a_larger_population_begins_with_the_smaller_one() -> None:
    larger = plant(SMALL.model_copy(update={"unseen_users": 400}))
    world = plant(SMALL)
    rewards_NR = true_rewards(world)
    for number in range(3):
        small, large = user_block(world, rewards_NR, number), user_block(larger, rewards_NR, number)
        assert all(np.array_equal(a, b) for a, b in zip(small, large, strict=True))


def test_seeds_name_worlds() -> None:
    first, again = true_rewards(plant(SMALL)), true_rewards(plant(SMALL))
    other = true_rewards(plant(SMALL.model_copy(update={"seed": 1})))
    assert first.tobytes() == again.tobytes()
    assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 0.1


def test_validation_changes_no_other_number() -> None:
    rewards_NR = true_rewards(plant(SMALL))
    with_valid = user_block(plant(SMALL), rewards_NR, 0)
    without = user_block(plant(SMALL.model_copy(update={"valid": 0})), rewards_NR, 0)
    keep = with_valid.split != VALID
    assert (~keep).sum() == 60 * 5
    assert all(np.array_equal(a[keep], b) for a, b in zip(with_valid, without, strict=True))


def test_users_have_their_comparisons_on_the_right_prompts() -> None:
    block = user_block(plant(SMALL), true_rewards(plant(SMALL)), 0)
    for split, seen, unseen in ((TRAIN, 20, 8), (VALID, 5, 0), (COLD, 50, 50)):
        count = np.bincount(block.user[block.split == split], minlength=100)
        assert (count[:60] == seen).all()
        assert (count[60:] == unseen).all()
    test = block.split == COLD
    for side in (block.chosen, block.rejected):
        assert (side[test] >= 300 * 8).all()
        assert (side[~test] < 300 * 8).all()
    assert (block.chosen // 8 == block.rejected // 8).all()
    assert (block.chosen != block.rejected).all()


def test_noisy_labels_agree_with_the_truth_in_four_of_five_and_held_out_ones_always() -> None:
    config = PlantedConfig(dim=64, train_prompts=2000, test_prompts=200, seen_users=1000, unseen_users=24)
    world = plant(config)
    rewards_NR = true_rewards(world)
    block = user_block(world, rewards_NR, 0)
    weights_UR = user_weights(world, 0)
    gap = ((rewards_NR[block.chosen] - rewards_NR[block.rejected]) * weights_UR[block.user]).sum(1)
    assert abs((gap[block.split == TRAIN] > 0).mean() - 0.81) < 0.015
    assert abs((gap[block.split == VALID] > 0).mean() - 0.81) < 0.015
    assert (gap[block.split == COLD] >= 0).all()


def test_extreme_comparisons_are_best_over_worst() -> None:
    world = plant(SMALL.model_copy(update={"protocol": "extreme"}))
    rewards_NR = true_rewards(world)
    block = user_block(world, rewards_NR, 0)
    score = rewards_NR.reshape(-1, 8, 5)[block.chosen // 8] @ user_weights(world, 0)[block.user][:, :, None]
    assert (score[:, :, 0].argmax(1) == block.chosen % 8).all()
    assert (score[:, :, 0].argmin(1) == block.rejected % 8).all()


def test_embeddings_have_the_promised_distance_and_spectrum() -> None:
    config = PlantedConfig(train_prompts=1000, test_prompts=24)
    world = plant(config)
    latent_ND = item_block(world, 0)
    emb_ND = embed(world, latent_ND)
    assert emb_ND.dtype == np.float16
    distance = np.linalg.norm(emb_ND[0::2].astype(np.float32) - emb_ND[1::2], axis=1)
    assert abs(np.sqrt((distance**2).mean()) - config.diff_norm) < 1
    variance = (emb_ND.astype(np.float32) @ world.rotation_DD).var(0)
    expected = 1.0 / (1.0 + np.arange(config.dim))
    np.testing.assert_allclose(variance / variance.sum(), expected / expected.sum(), rtol=0.1)
    np.testing.assert_allclose(true_rewards(world).std(0), 1, rtol=0.05)
