"""The planted population: PersonalLLM-shaped preferences whose truth is known.

Items are `prompts × responses` embeddings with a power-law spectrum, rewards are linear functions of
the latent item, users are Dirichlet mixtures of the rewards (PersonalLLM, arXiv 2409.20296). Every block of
items and of users has its own random stream, so a population of any size is generated block by block
and any block alone is bit-equal to that block of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raypref.config import PlantedConfig
from raypref.data.splits import SPLITS
from raypref.schema import Split

PROMPTS_PER_BLOCK = 1024
USERS_PER_BLOCK = 1024
REWARDED_COORDINATES = 256
"""Rewards depend on at most this many leading latent coordinates."""


class UserBlock(NamedTuple):
    """The comparisons of consecutive users; one row a comparison, sorted by user."""

    user: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    split: np.ndarray
    """Code in `SPLITS`: `train`, `valid` or `cold`; test prompts appear in nobody's training comparisons."""


@dataclass(frozen=True)
class PlantedWorld:
    """The fixed truth of a planted population: the spectrum, the rotation and the reward functions."""

    config: PlantedConfig
    scales_D: np.ndarray
    rotation_DD: np.ndarray
    rewards_RD: np.ndarray
    """Linear reward functions of the latent item, unit standard deviation over items."""

    @property
    def prompts(self) -> int:
        """Number of prompts: those of training first, then those of the test."""
        return self.config.train_prompts + self.config.test_prompts

    @property
    def items(self) -> int:
        """Number of items: prompts × responses, prompt by prompt."""
        return self.prompts * self.config.responses

    @property
    def users(self) -> int:
        """Number of users: the seen ones first, then the unseen."""
        return self.config.seen_users + self.config.unseen_users


def _stream(config: PlantedConfig, *path: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((config.seed, *path))))


def plant(config: PlantedConfig) -> PlantedWorld:
    """Draw the world that `config.seed` names.

    v_r = √shared·v_0 + √(1−shared)·v'_r with standard normal v_0, v'_r, each coordinate divided by √s_j.
    """
    rng = _stream(config, 0)
    scales_D = (1.0 + np.arange(config.dim)) ** -0.5
    scales_D /= np.linalg.norm(scales_D)
    rotation_DD, _ = np.linalg.qr(rng.standard_normal((config.dim, config.dim)))
    leading = min(config.dim, REWARDED_COORDINATES)
    common = rng.standard_normal(leading)
    own = rng.standard_normal((config.rewards, leading))
    v_RD = np.sqrt(config.shared) * common + np.sqrt(1 - config.shared) * own
    rewards_RD = np.zeros((config.rewards, config.dim))
    rewards_RD[:, :leading] = v_RD / np.sqrt(scales_D[:leading])
    rewards_RD /= np.sqrt(((rewards_RD * scales_D) ** 2).sum(1, keepdims=True))
    return PlantedWorld(config, scales_D, rotation_DD.astype(np.float32), rewards_RD)


def latent_items(world: PlantedWorld) -> Iterator[np.ndarray]:
    """Yield the latent items, one block of prompts after the other (float64, items × dim)."""
    for block in range(-(-world.prompts // PROMPTS_PER_BLOCK)):
        yield item_block(world, block)


def item_block(world: PlantedWorld, block: int) -> np.ndarray:
    """Return the latent items of one block of prompts."""
    config = world.config
    prompts = min(PROMPTS_PER_BLOCK, world.prompts - block * PROMPTS_PER_BLOCK)
    normal_ND = _stream(config, 1, block).standard_normal((prompts * config.responses, config.dim))
    return normal_ND * world.scales_D


def embed(world: PlantedWorld, latent_ND: np.ndarray) -> np.ndarray:
    """Return c·Q z: the embedding of latent items, float16, two responses about `diff_norm` apart."""
    scaled = latent_ND.astype(np.float32) * np.float32(world.config.diff_norm / np.sqrt(2.0))
    return (scaled @ world.rotation_DD.T).astype(np.float16)


def true_rewards(world: PlantedWorld) -> np.ndarray:
    """Return every item's true rewards (float32, items × rewards), generated block by block."""
    return np.concatenate([(z_ND @ world.rewards_RD.T).astype(np.float32) for z_ND in latent_items(world)])


def user_weights(world: PlantedWorld, block: int) -> np.ndarray:
    """Return the true weights of the users of a block (float64, users × rewards): Dirichlet(α·1)."""
    config = world.config
    count = min(USERS_PER_BLOCK, world.users - block * USERS_PER_BLOCK)
    alpha = np.full(config.rewards, config.alpha)
    return _stream(config, 2, block).dirichlet(alpha, size=count)


def comparisons(world: PlantedWorld, rewards_NR: np.ndarray) -> Iterator[UserBlock]:
    """Yield the comparisons of every user, one block of users after the other.

    Args:
        world: the planted truth.
        rewards_NR: what `true_rewards` returns.
    """
    for block in range(-(-world.users // USERS_PER_BLOCK)):
        yield user_block(world, rewards_NR, block)


def user_block(world: PlantedWorld, rewards_NR: np.ndarray, block: int) -> UserBlock:
    """Return the comparisons of one block of users.

    Seen users have `comparisons` training rows and `valid` more, unseen users `shots` training rows; all have
    `test_comparisons` noise-free rows on test prompts.
    """
    config = world.config
    weights_UR = user_weights(world, block)
    user_U = block * USERS_PER_BLOCK + np.arange(len(weights_UR))
    seen = user_U < config.seen_users
    counts: dict[Split, np.ndarray] = {
        "train": np.where(seen, config.comparisons, config.shots),
        "cold": np.full(len(user_U), config.test_comparisons),
        "valid": np.where(seen, config.valid, 0),
    }
    # Validation has its own stream: how much of it there is changes nothing else.
    rng, rng_valid = _stream(config, 3, block), _stream(config, 4, block)
    parts = [
        _compare(
            rng_valid if split == "valid" else rng, world, rewards_NR, weights_UR, user_U, count_U, split
        )
        for split, count_U in counts.items()
    ]
    user, chosen, rejected, split = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(user, kind="stable")
    return UserBlock(user[order], chosen[order], rejected[order], split[order])


def _compare(
    rng: np.random.Generator,
    world: PlantedWorld,
    rewards_NR: np.ndarray,
    weights_UR: np.ndarray,
    user_U: np.ndarray,
    count_U: np.ndarray,
    split: Split,
) -> UserBlock:
    config, responses = world.config, world.config.responses
    test = split == "cold"
    row = np.repeat(np.arange(len(user_U)), count_U)
    low, high = (config.train_prompts, world.prompts) if test else (0, config.train_prompts)
    prompt = rng.integers(low, high, len(row))
    if config.protocol == "extreme":
        items = prompt[:, None] * responses + np.arange(responses)
        scores = np.einsum("nir,nr->ni", rewards_NR[items], weights_UR[row])
        each = np.arange(len(row))
        left, right = items[each, scores.argmax(1)], items[each, scores.argmin(1)]
        swap = np.zeros(len(row), bool)
    else:
        first = rng.integers(0, responses, len(row))
        second = (first + rng.integers(1, responses, len(row))) % responses
        left, right = prompt * responses + first, prompt * responses + second
        gap = ((rewards_NR[left] - rewards_NR[right]) * weights_UR[row]).sum(1)
        keep = 1.0 / (1.0 + np.exp(-config.sharpness * gap))
        swap = gap < 0 if test else rng.random(len(row)) >= keep
    code = np.full(len(row), SPLITS.index(split), np.int8)
    return UserBlock(user_U[row], np.where(swap, right, left), np.where(swap, left, right), code)
