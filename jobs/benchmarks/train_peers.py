"""The population that `train.py` trains on, and the two full-batch loops that it stands beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raypref.config import PlantedConfig
from raypref.data.episodes import EpisodeSampler
from raypref.data.inference import HeldOut, contexts
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Comparisons, Tables
from raypref.methods import LoReConfig
from raypref.methods.base import Recipe, RewardModel
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes

PROMPTS = {384: 9402, 4096: 2000}
MOST_BYTES = 8 * 2**30
"""Of the full-batch loop's differences; larger ones are not tried."""

STALE = 100
"""Steps without a better accuracy after which the full-batch loop has passed its best."""

JUDGED = 500
"""Users whose accuracy is looked at."""


@dataclass(frozen=True)
class World:
    """A planted population on disk, and what is asked about it."""

    items: ItemTable
    tables: Tables
    learn: Comparisons
    test: Comparisons
    seed: int

    @property
    def dims(self) -> Dims:
        """What a model must know."""
        return Dims(self.items.width, self.tables.metadata.seen_users)


def planted(folder: Path, dim: int, users: int, seed: int = 0) -> World:
    """Return a population of so many seen users."""
    prompts = PROMPTS.get(dim, 300)
    config = PlantedConfig(
        seed=seed, dim=dim, seen_users=users, unseen_users=1, train_prompts=prompts, test_prompts=300
    )
    write_planted(config, folder / "items", folder / "tables")
    items, tables = ItemTable.open(folder / "items"), Tables.open(folder / "tables")
    learn, test = (tables.comparisons("seen", [split]) for split in ("train", "cold"))
    return World(items, tables, learn, test.select(test.user_U[:JUDGED]), seed)


@torch.no_grad()
def accuracy(model: RewardModel, world: World) -> float:
    """Return the share of seen users' comparisons of new prompts that are ranked right, users inferred."""
    model.eval()
    model.settle(contexts(world.items, world.learn, 128))
    return ranked_right(
        world,
        lambda batch: (
            model(batch.target, model.infer(model.encode(batch.context), batch.context.mask_BP)).mean_BN
        ),
    )


@torch.no_grad()
def ranked_right(world: World, margin: Callable[[Episodes], Tensor]) -> float:
    """Return the share of seen users' comparisons of new prompts whose margin is positive."""
    right = count = 0.0
    for batch in HeldOut(world.items, world.learn, world.test, JUDGED, 64):
        right += float(((margin(batch) > 0) * batch.target.mask_BP).sum())
        count += float(batch.target.mask_BP.sum())
    return right / count


def stepped(model: RewardModel, world: World, recipe: Recipe) -> Iterator[tuple[int, float]]:
    """Take the recipe's steps and yield the number and the seconds of each, its episodes included."""
    sampler = EpisodeSampler(world.learn, world.items.gather, recipe, world.seed)
    state = start(model, recipe)
    episodes = (sampler.episodes(step) for step in range(recipe.steps))
    steps = train(state, episodes, recipe, seed=world.seed)
    while True:
        model.train()
        began = time.process_time()
        metrics = next(steps, None)
        if metrics is None:
            return
        yield metrics.step, time.process_time() - began


def differences(world: World, part: Comparisons, users: int) -> Tensor:
    """Return delta_UPD of the first users, who all have equally many comparisons."""
    chosen, rejected = (
        part.chosen_M.reshape(len(part.user_U), -1),
        part.rejected_M.reshape(len(part.user_U), -1),
    )
    shape = (users, chosen.shape[1], world.dims.embedding)
    delta_UPD = torch.empty(shape)
    for user in range(users):
        first, second = (world.items.gather(ids[user]) for ids in (chosen, rejected))
        torch.sub(torch.from_numpy(first).float(), torch.from_numpy(second).float(), out=delta_UPD[user])
    return delta_UPD


def full_batch(world: World, budget_s: float) -> dict[str, Any] | None:
    """Return the curve of the published loop, all users at once; None where it does not fit memory."""
    if 4 * len(world.learn) * world.dims.embedding > MOST_BYTES:
        return None
    users, bases = world.dims.users, LoReConfig().bases
    delta_UPD, test_JPD = (
        differences(world, world.learn, users),
        differences(world, world.test, len(world.test.user_U)),
    )
    judged_J = torch.from_numpy(np.searchsorted(world.learn.user_U, world.test.user_U))
    torch.manual_seed(world.seed)
    logits_UK = torch.randn(users, bases, requires_grad=True)
    bases_KD = torch.randn(bases, world.dims.embedding, requires_grad=True)
    optimiser = torch.optim.Adam([logits_UK, bases_KD], lr=0.5)
    curve: list[dict[str, float]] = []
    took: list[float] = []
    best = {"step": 0, "accuracy": 0.0}
    while sum(took) < budget_s and len(took) < best["step"] + STALE:
        began = time.process_time()
        optimiser.zero_grad()
        loss_U = F.softplus(-published(delta_UPD, logits_UK, bases_KD)).mean(1)
        loss_U.sum().backward()
        optimiser.step()
        took.append(time.process_time() - began)
        if len(took) % 10 == 0:
            with torch.no_grad():
                right = published(test_JPD, logits_UK[judged_J], bases_KD) > 0
            curve.append({"seconds": sum(took), "step": len(took), "accuracy": float(right.float().mean())})
            best = max(best, curve[-1], key=lambda point: point["accuracy"])
    return {"curve": curve, "comparisons_s": len(world.learn) / float(np.median(took))}


def published(delta_UPD: Tensor, logits_UK: Tensor, bases_KD: Tensor) -> Tensor:
    """Return margins_UP as published: δᵀVw / 100, w on the simplex."""
    feature_UPK = F.linear(delta_UPD, bases_KD)
    return (feature_UPK @ torch.softmax(logits_UK, -1).unsqueeze(-1)).squeeze(-1) / 100.0


def walked(world: World, sizes: Sequence[int]) -> dict[str, Any]:
    """Return seconds of a step that walks the users, and of one that walks all of the population."""
    sizes = [size for size in sizes if size <= world.dims.users]
    delta_UPD = differences(world, world.learn, max(sizes))
    bases_KD = torch.randn(LoReConfig().bases, world.dims.embedding, requires_grad=True)
    seconds = [min(_walk(delta_UPD[:size], bases_KD) for _ in range(2)) for size in sizes]
    # Seconds over users are a line in users: a step costs α·U + β·U².
    slope, level = np.polyfit(sizes, np.divide(seconds, sizes), 1)
    users = world.dims.users
    step_s = users * (level + max(0.0, slope) * users)
    return {
        "users": sizes,
        "step_s": seconds,
        "population_step_s": step_s,
        "comparisons_s": len(world.learn) / step_s,
    }


def _walk(delta_UPD: Tensor, bases_KD: Tensor) -> float:
    logits_UK = torch.randn(len(delta_UPD), len(bases_KD), requires_grad=True)
    optimiser = torch.optim.Adam([logits_UK, bases_KD], lr=0.5)
    began = time.process_time()
    optimiser.zero_grad()
    loss = torch.zeros(())
    for user, delta_PD in enumerate(delta_UPD):
        margin_P = published(delta_PD, logits_UK[user], bases_KD)
        loss = loss + F.softplus(-margin_P).mean()
    loss.backward()
    optimiser.step()
    return time.process_time() - began
