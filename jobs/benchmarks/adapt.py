"""Users per second of `infer` from evidence, beside gradient steps, in a batch and one user at a time.

    python jobs/benchmarks/adapt.py [--quick --out FOLDER] [--device cuda]

A user has 16 comparisons, a batch 10,000 users. Linear methods have K = 8 bases and give a mean and a
covariance. Gradient steps are 500 of Adam on the weights of LoRe's 8 bases, as its authors adapt a user;
those of one user at a time are timed on a few. One thread on a CPU, whose time is CPU time.

Writes `results/adapt.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from clock import chosen, medians, peaks
from recording import save, spread, surroundings

from raypref.checkpoint import build
from raypref.methods import METHODS, LoReConfig, PALBConfig
from raypref.methods.base import MethodConfig, RewardModel
from raypref.types import Dims, Pairs

FILE = "adapt.json"
DIM, SHOTS, BASES, SEEN = 64, 16, 8, 2048
ALONE = 5
"""Users that are adapted one at a time."""

REACHES = {"lore": 20_000, "pref": 20_000, "vrf": 1_000_000}
"""Users per second."""

GRADIENT = LoReConfig(solver="adam", bases=BASES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    given, device = chosen(__doc__, FILE, arguments)
    users, rounds = (100, 2) if given.quick else (10_000, 15)
    batched = _rates(GRADIENT, users, rounds, device)
    alone = _alone(1 if given.quick else ALONE, rounds, device)
    methods = {config.model_dump()["type"]: _rates(config, users, rounds, device) for config in configs()}
    able = peaks(device, given.quick)
    for name, figures in methods.items():
        figures["times_batched_steps"] = figures["users_s"]["median"] / batched["users_s"]["median"]
        figures["times_steps_one_at_a_time"] = figures["users_s"]["median"] / alone["users_s"]["median"]
        figures["reach_users_s"] = REACHES.get(name)
        # What reading the evidence and writing the vector once allows.
        figures["bytes_limit_users_s"] = able["read_bytes"] / max(1, figures["bytes_per_user"])
    found = {
        "command": "python jobs/benchmarks/adapt.py",
        **surroundings("torch"),
        "device": str(device),
        "peaks": able,
        "shots": SHOTS,
        "batch": users,
        "steps_batched": batched,
        "steps_one_at_a_time": alone,
        "methods": methods,
    }
    save(given.out / FILE, found)
    for name, figures in {"steps": batched, "steps alone": alone, **methods}.items():
        print(f"{name:12}{figures['users_s']['median']:14,.0f} users/s")
    return 0


def configs() -> list[MethodConfig]:
    """Return every method's defaults, those with bases with as many."""
    found: list[MethodConfig] = []
    for kind in METHODS:
        given = {"bases": BASES} if kind.__name__ in ("LoReConfig", "PReFConfig") else {}
        found.append(kind.model_validate(given))
    return found


@torch.no_grad()
def _rates(config: MethodConfig, users: int, rounds: int, device: torch.device) -> dict[str, Any]:
    model, evidence_BPE, mask_BP = _prepared(config, users, device)
    infer: Callable[[], object] = lambda: model.infer(evidence_BPE, mask_BP)  # noqa: E731
    taken = medians({"": infer}, device, rounds, 0.0)[""]
    vector_BZ = model.infer(evidence_BPE[:1], mask_BP[:1])
    return {
        "method": config.model_dump(mode="json"),
        "users_s": spread([users / s for s in taken]),
        "bytes_per_user": 4 * (SHOTS * evidence_BPE.shape[-1] + vector_BZ.shape[-1]),
    }


@torch.no_grad()
def _alone(users: int, rounds: int, device: torch.device) -> dict[str, Any]:
    model, evidence_BPE, mask_BP = _prepared(GRADIENT, users, device)

    def one_by_one() -> None:
        for user in range(users):
            model.infer(evidence_BPE[user : user + 1], mask_BP[user : user + 1])

    taken = medians({"": one_by_one}, device, rounds, 0.0)[""]
    return {"users": users, "users_s": spread([users / s for s in taken])}


def _prepared(
    config: MethodConfig, users: int, device: torch.device
) -> tuple[RewardModel, torch.Tensor, torch.Tensor]:
    """Return a model that seen users' comparisons have settled, and evidence of other users."""
    random = torch.Generator().manual_seed(0)
    width = 2 * DIM if isinstance(config, PALBConfig) else DIM
    model = build(config, Dims(width, SEEN), 0).eval()
    seen_chosen, seen_rejected = (torch.randn(SEEN, SHOTS, width, generator=random) for _ in range(2))
    model.fit_scale(seen_chosen.flatten(0, 1))
    model.settle([Pairs(seen_chosen, seen_rejected, torch.ones(SEEN, SHOTS))])
    chosen, rejected = (torch.randn(users * SHOTS, width, generator=random) for _ in range(2))
    model = model.to(device)
    evidence_NE = model.evidence(chosen.to(device), rejected.to(device))
    return model, evidence_NE.unflatten(0, (users, SHOTS)), torch.ones(users, SHOTS, device=device)


if __name__ == "__main__":
    raise SystemExit(main())
