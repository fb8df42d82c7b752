"""A planted population small enough to train a method in seconds, as arrays in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raypref.config import PlantedConfig
from raypref.data.episodes import EpisodeSampler, pad
from raypref.data.planted import comparisons, embed, latent_items, plant, true_rewards
from raypref.data.splits import SPLITS
from raypref.data.tables import Comparisons
from raypref.methods.base import MethodConfig, RewardModel
from raypref.schema import Split
from raypref.train.loop import start, train
from raypref.types import Dims, Pairs

CONFIG = PlantedConfig(
    seed=11,
    dim=48,
    train_prompts=1500,
    test_prompts=200,
    rewards=3,
    seen_users=400,
    unseen_users=300,
    comparisons=40,
    shots=8,
    test_comparisons=40,
    sharpness=3.0,
)


@dataclass(frozen=True)
class SmallPopulation:
    emb_ND: np.ndarray
    learn: Comparisons
    shots: Comparisons
    test: Comparisons

    def gather(self, ids_N: np.ndarray) -> np.ndarray:
        return self.emb_ND[ids_N]

    def pairs(self, part: Comparisons, limit: int | None = None) -> Pairs:
        chosen_BP, rejected_BP, mask_BP = pad(part, np.arange(len(part.user_U)), limit)
        return Pairs(
            torch.from_numpy(self.emb_ND[chosen_BP]),
            torch.from_numpy(self.emb_ND[rejected_BP]),
            torch.from_numpy(mask_BP),
        )


def grow(config: PlantedConfig = CONFIG) -> SmallPopulation:
    world = plant(config)
    emb_ND = np.concatenate([embed(world, latent_ND) for latent_ND in latent_items(world)])
    blocks = list(comparisons(world, true_rewards(world)))
    columns = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("user", "chosen", "rejected", "split")
    }
    rows = np.where(np.arange(world.users) < config.seen_users, np.arange(world.users), -1)

    def part(seen: bool, split: Split) -> Comparisons:
        keep = ((columns["user"] < config.seen_users) == seen) & (columns["split"] == SPLITS.index(split))
        kept = {name: values[keep] for name, values in columns.items() if name != "split"}
        kept["pair_id"] = np.flatnonzero(keep)
        kept["weight"] = np.ones(int(keep.sum()), np.float32)
        return Comparisons.from_batches([kept], rows)

    return SmallPopulation(emb_ND, part(True, "train"), part(False, "train"), part(False, "cold"))


def fit(config: MethodConfig, population: SmallPopulation, seed: int = 0) -> RewardModel:
    torch.manual_seed(seed)
    model = config.build(Dims(population.emb_ND.shape[1], len(population.learn.user_U)))
    model.fit_scale(torch.from_numpy(population.emb_ND))
    sampler = EpisodeSampler(population.learn, population.gather, config.recipe, seed)
    state = start(model, config.recipe)
    for _ in train(
        state, (sampler.episodes(i) for i in range(config.recipe.steps)), config.recipe, seed=seed
    ):
        pass
    model.eval()
    model.settle([population.pairs(population.learn)])
    return model


@torch.no_grad()
def accuracy(model: RewardModel, population: SmallPopulation, shots: int) -> float:
    """Accuracy on unseen users' held-out comparisons after some shots, averaged per user."""
    context, test = population.pairs(population.shots, shots), population.pairs(population.test)
    user_BZ = model.infer(model.encode(context), context.mask_BP)
    right_BP = (model(test, user_BZ).logit_BN() > 0).float() * test.mask_BP
    return float((right_BP.sum(1) / test.mask_BP.sum(1)).mean())
