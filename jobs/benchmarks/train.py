"""What LoRe's training costs: beside mini-batch Adam, a full-batch loop, and a loop that walks the users.

    python jobs/benchmarks/train.py [--quick --out FOLDER]

On planted populations (noisy labels, 45 comparisons of each user), one thread, CPU time. Accuracy is that on
seen users' comparisons of new prompts, which every competitor has. Ours is the default, timed from `prime`
on; its users' weights are solved for within each step, and AdamW moves the heads alone. Beside it stand:

- `joint`, mini-batch Adam: users' rows of weights and the bases are both parameters under it, in LoRe's
  published form and in our own model's most probable weights (`train_joint.py`), at every setting of a grid.
- `schedule`, which is no other optimiser but ours without a fixed schedule: the same objective, solved
  weights and episodes at every rate and length of a grid, the quickest good one known in hindsight.
- The full-batch loop, LoRe as published, vectorised: simplex weights and bases under one Adam at rate 0.5,
  over differences that are in memory, whose making is not timed; it is given `--budget` seconds, or less
  where it has not gained for `STALE` steps.
- The loop that walks the users, the full-batch one with a Python loop over users. It is timed for a few
  sizes; what all users take is the quadratic through them: selecting one user's row has a gradient as large
  as the table.

Of a grid, the quickest run within `CLOSE` of the best accuracy of all runs counts; ours is timed until its
curve first is within `CLOSE` of that best. The full-batch loop's curve is treated in the same way.

Writes `results/train.json`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import peaks
from recording import options, parse, save, surroundings
from train_joint import joint
from train_peers import PROMPTS, World, accuracy, full_batch, planted, stepped, walked

from raypref.checkpoint import build
from raypref.methods import LoReConfig
from raypref.methods.base import Recipe, RewardModel
from raypref.train.session import PRIMING_USERS, SCALE_SAMPLE, FirstUsers

FILE = "train.json"
WALKED = (100, 200, 400, 800)
"""Users whose walking is timed."""

LOOKS = (5, 10, 20, 30, 40, 60, 80, 100, 125, 150, 175, 200, 225)
"""Steps after which the accuracy of ours is looked at, beside its last; looking is not timed."""

CLOSE = 0.002
RATES = (5e-3, 1e-2, 2e-2)
LENGTHS = {1000: (60, 120), 10_000: (120, 250)}
"""Steps of our own objective in hindsight, by the users of the population."""

JOINT_LENGTHS = {
    (384, 1000): (120, 250, 500),
    (384, 10_000): (250, 500, 1000),
    (4096, 1000): (120, 250),
    (4096, 10_000): (500,),
}
"""Steps of mini-batch Adam on rows and bases, by the population's D and users; fewer where steps are dear."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    dims: tuple[int, ...]
    users: tuple[int, ...]
    budget_s: float
    rates: tuple[float, ...] = RATES
    walked: tuple[int, ...] = WALKED


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    parser = options(__doc__, FILE)
    parser.add_argument("--dims", type=int, nargs="+", choices=PROMPTS, default=tuple(PROMPTS))
    parser.add_argument("--users", type=int, nargs="+", choices=LENGTHS, default=tuple(LENGTHS))
    parser.add_argument("--budget", type=float, default=150.0, help="CPU seconds of a full-batch loop")
    given = parse(parser, arguments)
    torch.set_num_threads(1)
    plan = Plan(tuple(given.dims), tuple(given.users), given.budget)
    if given.quick:
        plan = Plan((32,), (200,), 2.0, (1e-2,), (20, 40, 80))
    rows: list[dict[str, Any]] = []
    for dim in plan.dims:
        for users in plan.users:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(compared(planted(Path(folder), dim, users), plan))
            _say(rows[-1])
    found = {
        "command": "python jobs/benchmarks/train.py",
        **surroundings("torch"),
        "peaks": peaks(torch.device("cpu"), given.quick),
        "close": CLOSE,
        "populations": rows,
    }
    save(given.out / FILE, found)
    return 0


def compared(world: World, plan: Plan) -> dict[str, Any]:
    """Return the curves of all competitors on a population, and how their times compare."""
    users = world.dims.users
    ours = primed(world)
    grids = {
        "joint": joint(world, JOINT_LENGTHS.get((world.dims.embedding, users), (20, 40))),
        "schedule": [
            scheduled(world, rate, steps) for rate in plan.rates for steps in LENGTHS.get(users, (20, 40))
        ],
    }
    full = full_batch(world, plan.budget_s)
    walk = walked(world, plan.walked)
    row: dict[str, Any] = {
        "dim": world.dims.embedding,
        "users": users,
        "comparisons": len(world.learn),
        "ours": ours,
        "full_batch": full,
        "walk": walk,
    }
    for name, runs in grids.items():
        target = max(run["accuracy"] for run in runs) - CLOSE
        quickest = min((run for run in runs if run["accuracy"] >= target), key=lambda run: run["seconds"])
        own = first_at(ours["curve"], target)
        row[name] = {"runs": runs, "quickest": quickest, "accuracy": target, "ours_s": own}
        row[f"times_{name}"] = own and quickest["seconds"] / own
    if full:
        target = max(point["accuracy"] for point in full["curve"]) - CLOSE
        reached = next(point for point in full["curve"] if point["accuracy"] >= target)
        own, walk_s = first_at(ours["curve"], target), reached["step"] * walk["population_step_s"]
        row |= {"full_batch_accuracy": target, "ours_at_full_batch_accuracy_s": own}
        row |= {"full_batch_s": reached["seconds"], "walk_s": walk_s}
        row |= {"times_full_batch": own and reached["seconds"] / own, "times_walk": own and walk_s / own}
    return row


def first_at(curve: Sequence[dict[str, float]], accuracy: float) -> float | None:
    """Return the seconds after which a curve reaches an accuracy; None if it never does."""
    return next((point["seconds"] for point in curve if point["accuracy"] >= accuracy), None)


def primed(world: World) -> dict[str, Any]:
    """Return the curve of LoRe as it is."""
    recipe = LoReConfig().recipe
    began = time.process_time()
    model = fresh(world)
    model.prime(FirstUsers(world.items, world.tables, PRIMING_USERS))
    spent = time.process_time() - began
    curve = [{"seconds": spent, "step": 0, "accuracy": accuracy(model, world)}]
    took: list[float] = []
    for step, seconds in stepped(model, world, recipe):
        took.append(seconds)
        spent += seconds
        if step in LOOKS or step == recipe.steps:
            curve.append({"seconds": spent, "step": step, "accuracy": accuracy(model, world)})
    comparisons = len(world.learn) / world.dims.users * min(world.dims.users, recipe.users_per_step)
    return {"curve": curve, "comparisons_s": comparisons / float(np.median(took))}


def scheduled(world: World, rate: float, steps: int) -> dict[str, Any]:
    """Return what our own objective comes to at another rate and length."""
    recipe = Recipe(steps=steps, warmup=0.08, users_per_step=128, targets=64, lr=rate)
    began = time.process_time()
    model = fresh(world)
    spent = time.process_time() - began
    spent += sum(seconds for _, seconds in stepped(model, world, recipe))
    return {"rate": rate, "steps": steps, "seconds": spent, "accuracy": accuracy(model, world)}


def fresh(world: World) -> RewardModel:
    """Return LoRe with random heads."""
    model = build(LoReConfig(), world.dims, world.seed)
    model.fit_scale(torch.from_numpy(world.items.sample(SCALE_SAMPLE, world.seed)))
    return model


def _say(row: dict[str, Any]) -> None:
    print(f"D={row['dim']} users={row['users']}: {row['ours']['comparisons_s']:,.0f} comparisons/s a step")
    print(f"  ours {[(round(p['seconds'], 2), round(p['accuracy'], 4)) for p in row['ours']['curve']]}")
    for name in ("joint", "schedule"):
        one = row[name]
        print(f"  {name} {one['quickest']}; ours at {one['accuracy']:.4f} in {one['ours_s']} s: ", end="")
        print(f"x{row[f'times_{name}']}")
    if row["full_batch"]:
        print(
            f"  full batch {row['full_batch_accuracy']:.4f} in {row['full_batch_s']:.1f} s; ours in "
            f"{row['ours_at_full_batch_accuracy_s']} s: x{row['times_full_batch']}, walking "
            f"x{row['times_walk']}"
        )
    rates = row["full_batch"] and row["full_batch"]["comparisons_s"], row["walk"]["comparisons_s"]
    print(f"  full batch and walking: {rates} comparisons/s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
