"""How many answers it takes to know somebody: questions by expected information gain, beside random ones.

    python jobs/benchmarks/explore.py

Planted people, of whom a method knows the population, answer truly. After every answer the method picks, for
prompts that are never asked about, the response that it believes they like best; a pick is right where it is
truly the best. Both ways of asking draw from the same pairs; what differs is which is asked next.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import options, parse, save, surroundings

from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.planted import item_block, plant, user_weights
from raypref.data.planting import write_planted
from raypref.data.tables import Tables
from raypref.methods.base import RewardModel
from raypref.methods.gaussians import information_gain
from raypref.train.session import Session, finish

FILE = "explore.json"
METHODS, SEEDS, PEOPLE, ANSWERS = ("lore", "vrf", "pref"), (11, 12, 13), 100, 20
POOL = 200
"""Pairs to choose from at each question."""
ENOUGH = 0.8
"""Share of right picks that is reached after so many answers."""


def trained(method: str, folder: Path, seed: int) -> tuple[RunConfig, RewardModel, ItemTable]:
    """Return a planted population's run, a method that knows it, and its items."""
    raw: dict[str, Any] = {
        "dir": str(folder),
        "planted": {"seed": seed, "dim": 32, "train_prompts": 200, "test_prompts": 60, "rewards": 4}
        | {"responses": 4, "seen_users": 400, "unseen_users": 100},
        "method": {"type": method, "recipe": {"steps": 200}},
        "train": {"patience": 0},
    }
    config = RunConfig.model_validate(raw)
    write_planted(config.planted, config.items_dir, config.tables_dir)
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    session = Session(config, items, tables, torch.device("cpu"))
    for _ in session.steps():
        pass
    return config, finish(config, items, tables, session.state).model.eval(), items


@torch.no_grad()
def right_by_answers(
    config: RunConfig, model: RewardModel, items: ItemTable, answers: int, people: int, by_gain: bool
) -> list[float]:
    """Return the share of right picks after 0, 1, 2 … answers, over people and prompts."""
    planted = config.planted
    world = plant(planted)
    rewards_NR = np.concatenate([item_block(world, block) for block in range(1)]) @ world.rewards_RD.T
    first = planted.train_prompts * planted.responses
    asked, kept = planted.test_prompts // 2, planted.test_prompts - planted.test_prompts // 2
    item_NF = model.item(torch.from_numpy(items.gather(np.arange(len(items)))))
    weights_UR = user_weights(world, 0)[planted.seen_users : planted.seen_users + people]
    judged_QR = first + (asked + np.arange(kept))[:, None] * planted.responses + np.arange(planted.responses)
    right = np.zeros(answers + 1)
    for user, weight_R in enumerate(weights_UR):
        draw = np.random.default_rng(user)
        worth_N = rewards_NR @ weight_R
        truth_Q = worth_N[judged_QR].argmax(1)
        evidence: list[torch.Tensor] = []
        for count in range(answers + 1):
            nothing = [model.evidence(*[torch.zeros(1, planted.dim)] * 2)[0]]
            told_1PE = torch.stack(evidence or nothing)[None]
            mask_1P = torch.ones(1, told_1PE.shape[1]) * bool(evidence)
            user_1Z = model.infer(told_1PE, mask_1P)
            mean_QR = model.reward(item_NF[judged_QR].reshape(1, judged_QR.size, -1), user_1Z).mean_BN
            right[count] += float((mean_QR.reshape(judged_QR.shape).argmax(1).numpy() == truth_Q).mean())
            prompt_P = draw.integers(asked, size=POOL)
            place_P2 = np.array([draw.permutation(planted.responses)[:2] for _ in range(POOL)])
            pair_P2 = first + prompt_P[:, None] * planted.responses + place_P2
            chosen = 0
            if by_gain:
                sides = (item_NF[pair_P2[:, 0]][None], item_NF[pair_P2[:, 1]][None])
                margin = model.margin(*sides, user_1Z)
                doubt = model.doubt(*sides, user_1Z)
                assert doubt is not None
                chosen = int(information_gain(margin.mean_BN, doubt).argmax())
            one, other = pair_P2[chosen].tolist()
            if worth_N[one] < worth_N[other]:
                one, other = other, one
            emb_2D = torch.from_numpy(items.gather(np.array([one, other])))
            evidence.append(model.evidence(emb_2D[:1], emb_2D[1:])[0])
    return (right / len(weights_UR)).round(4).tolist()


def needed(right: list[float]) -> int | None:
    """Return after how many answers enough picks are right; None: not within those that were given."""
    return next((count for count, share in enumerate(right) if share >= ENOUGH), None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    given = parse(options(__doc__, FILE), arguments)
    people, seeds, methods = (10, SEEDS[:1], METHODS[:1]) if given.quick else (PEOPLE, SEEDS, METHODS)
    rows: list[dict[str, Any]] = []
    for method in methods:
        for seed in seeds:
            row: dict[str, Any] = {"method": method, "seed": seed}
            with tempfile.TemporaryDirectory() as folder:
                config, model, items = trained(method, Path(folder), seed)
                for name in ("gain", "random"):
                    row[name] = right_by_answers(config, model, items, ANSWERS, people, name == "gain")
                    row[f"{name}_needed"] = needed(row[name])
            rows.append(row)
            shown = [
                f"{name} {row[name][5]:.3f} {row[name][10]:.3f} {row[f'{name}_needed']}"
                for name in ("gain", "random")
            ]
            print(
                f"{method}, seed {seed}; right after 5 and 10, answers to {ENOUGH}: {'; '.join(shown)}",
                flush=True,
            )
    save(given.out / FILE, {"enough": ENOUGH, "people": people, "rows": rows, **surroundings("torch")})


if __name__ == "__main__":
    main()
