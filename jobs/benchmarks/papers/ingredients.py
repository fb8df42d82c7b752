"""What each ingredient of VRF is worth, and how much of it is enough."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from record import Record, Trial

from papers.claim import Bench, Claim, Figures
from papers.paired import above, accuracies, estimate, lead, points, records
from papers.published import Method

SOURCE = "VRF, arXiv 2604.00997"
POPULATION, CELL = "planted-noisy", "unseen/cold/16"
SEEDS, SWEPT_SEEDS = (0, 1, 2), (0, 1)

VRF: Method = {"type": "vrf", "recipe": {"steps": 600, "users_per_step": 32, "lr": 5e-3}}
"""As `methods.py` trains it at the default size."""
ABLATIONS: dict[str, Method] = {
    "variance-attenuated loss": {**VRF, "attenuate": False},
    "separation of the bases": {**VRF, "separation": 0.0},
    "mixture prior": {**VRF, "prior": "normal"},
    "KL": {**VRF, "kl": 0.0},
}
"""VRF without one ingredient each."""

BASES = (2, 4, 6, 8, 10, 12, 16)
ENOUGH = 8
SATURATED = 0.005
"""Accuracy within which more bases or another KL weight make no difference."""
KL = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
DECADES = 2
"""Width that a plateau must have."""


def _trials(methods: Mapping[str, Method], seeds: tuple[int, ...], bench: Bench) -> list[Trial]:
    return [Trial(POPULATION, s, name, each, bench.size) for name, each in methods.items() for s in seeds]


def _by_label(found: list[Record]) -> dict[str, list[Record]]:
    labels = dict.fromkeys(record.trial.label for record in found)
    return {label: [record for record in found if record.trial.label == label] for label in labels}


def measure_ablations(bench: Bench) -> Figures:
    """Take one ingredient away at a time."""
    found = _by_label(records(bench, _trials({"vrf": VRF, **ABLATIONS}, SEEDS, bench)))
    whole = found.pop("vrf")
    return {
        "population": POPULATION,
        "cell": CELL,
        "seeds": list(SEEDS),
        "accuracy": estimate(accuracies(whole, CELL)),
        "cost": {name: estimate(lead(whole, each, CELL)) for name, each in found.items()},
    }


def ablation_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether each ingredient's absence costs accuracy beyond the interval."""
    return {f"without the {name} accuracy falls": above(cost) for name, cost in figures["cost"].items()}


def ablation_reading(figures: Figures) -> str:
    """Say what each ingredient is worth."""
    costs = ", ".join(f"{name} {points(cost, 2)}" for name, cost in figures["cost"].items())
    return (
        f"Accuracy {figures['accuracy']['mean']:.3f} at 16 shots ({figures['population']}, "
        f"{len(figures['seeds'])} seeds); points lost without: {costs}."
    )


def _sweep(bench: Bench, methods: Mapping[str, Method]) -> Figures:
    found = _by_label(records(bench, _trials(methods, SWEPT_SEEDS, bench)))
    return {
        "population": POPULATION,
        "cell": CELL,
        "seeds": list(SWEPT_SEEDS),
        "accuracy": {name: estimate(accuracies(each, CELL)) for name, each in found.items()},
    }


def measure_bases(bench: Bench) -> Figures:
    """Train VRF with few bases and many."""
    return _sweep(bench, {str(bases): {**VRF, "bases": bases} for bases in BASES})


def bases_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether few bases cost accuracy, and those that the paper calls enough are."""
    mean = {int(bases): found["mean"] for bases, found in figures["accuracy"].items()}
    best = max(mean.values())
    return {
        f"{min(mean)} bases cost accuracy": mean[min(mean)] < best - SATURATED,
        f"{ENOUGH} to 12 bases are within {SATURATED} of the best": all(
            mean[bases] >= best - SATURATED for bases in mean if ENOUGH <= bases <= 12
        ),
    }


def bases_reading(figures: Figures) -> str:
    """List accuracy by number of bases."""
    said = ", ".join(f"{bases}: {found['mean']:.3f}" for bases, found in figures["accuracy"].items())
    return f"Accuracy at 16 shots by number of bases ({len(figures['seeds'])} seeds): {said}."


def measure_kl(bench: Bench) -> Figures:
    """Train VRF with the KL weighed by every decade."""
    return _sweep(bench, {f"{kl:g}": {**VRF, "kl": kl} for kl in KL})


def plateau(accuracy: Mapping[str, Figures]) -> tuple[float, float]:
    """Return the ends of the longest run of weights whose accuracy is within `SATURATED` of the best."""
    best = max(found["mean"] for found in accuracy.values())
    runs: list[list[float]] = [[]]
    for weight, found in accuracy.items():
        if found["mean"] >= best - SATURATED:
            runs[-1].append(float(weight))
        else:
            runs.append([])
    longest = max(runs, key=len)
    return longest[0], longest[-1]


def kl_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether there is a plateau, and it ends: a weight that nothing depends on is no ingredient."""
    low, high = plateau(figures["accuracy"])
    mean = [found["mean"] for found in figures["accuracy"].values()]
    return {
        f"a plateau of {DECADES} decades": bool(np.log10(high / low) >= DECADES - 1e-9),
        "beyond it accuracy falls": min(mean) < max(mean) - SATURATED,
    }


def kl_reading(figures: Figures) -> str:
    """Say where the plateau lies and list accuracy by weight."""
    low, high = plateau(figures["accuracy"])
    said = ", ".join(f"{kl}: {found['mean']:.3f}" for kl, found in figures["accuracy"].items())
    return f"Within {SATURATED} of the best from β = {low:g} to {high:g}; accuracy at 16 shots {said}."


CLAIMS = (
    Claim(
        4,
        "ingredients",
        "Each ingredient of VRF removed costs accuracy",
        SOURCE,
        measure_ablations,
        ablation_conditions,
        ablation_reading,
    ),
    Claim(
        4,
        "bases",
        "VRF saturates at 8 to 12 bases",
        SOURCE,
        measure_bases,
        bases_conditions,
        bases_reading,
    ),
    Claim(
        4,
        "kl_weight",
        "VRF has a plateau over the weight of its KL",
        SOURCE,
        measure_kl,
        kl_conditions,
        kl_reading,
    ),
)
