"""Whether a variational method's latent says anything: as β rises, the decoder grows and data thins (SPL)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

from record import Record, Trial

from papers.claim import Bench, Claim, Figures
from papers.paired import accuracies, estimate, records
from papers.published import PUBLISHED, Method

SOURCE = "SPL, arXiv 2603.12595"
CELL = "unseen/cold/16"
POPULATIONS = ("planted-noisy", "planted-extreme")
WIDTHS = (64, 256)
"""H = Z of the released heads; theirs are 512 and 1024."""
WEIGHTS = (3e-6, 3e-4, 3e-3, 3e-2)
"""β of the KL; the released ones are 3e-6 and 1e-4."""
COMPARISONS = (10, 45)
"""Training comparisons of a seen user."""
SHORT = {"steps": 300, "lr": 1e-3, "users_per_step": 32, "targets": 16}
"""Recipe of the grid: fewer steps than released, at a higher rate."""
ACTIVE_SHARE = 0.9
FLAT = 0.01
"""Accuracy within which a decade of β makes no difference."""
MATTERS = 0.005
"""Latent gain by which a setting must differ to count."""

ALIVE = 0.80
"""Accuracy of a method whose latent is alive, on users it never met after 16 noisy comparisons."""
ALIVE_SEEDS = (0, 1)
HEADS: dict[str, Method] = {
    name: {**PUBLISHED[name], "latent": 128, "hidden": 128} for name in ("vpl", "spl")
}
"""The released heads at a size that trains on a CPU."""
BUDGET = {"steps": 600, "users_per_step": 32}
"""Recipe of the defaults over the grid, as `methods.py` cuts it."""
ROBUST: dict[str, Method] = {name: {"type": name} for name in ("vpl", "spl")}

Point = dict[str, Any]
"""One fit: its setting and what became of the latent."""


def measure(bench: Bench) -> Figures:
    """Fit narrow released heads over the grid, wide ones at the released β, the robust defaults beside."""
    trials: list[Trial] = []
    for population, comparisons in product(POPULATIONS, COMPARISONS):
        data: Mapping[str, Any] = {"comparisons": comparisons}
        for name, method in ROBUST.items():
            trials.append(Trial(population, 0, name, {**method, "recipe": BUDGET}, bench.size, data))
        settings = [*product(WIDTHS[:1], WEIGHTS), *product(WIDTHS[1:], WEIGHTS[:1])]
        for name, (width, kl) in product(ROBUST, settings):
            head = {"latent": width, "hidden": width, "kl": kl, "recipe": SHORT}
            label = f"{name}-released"
            trials.append(Trial(population, 0, label, {**PUBLISHED[name], **head}, bench.size, data))
    points = [point(record) for record in records(bench, trials)]
    return {"cell": CELL, "seed": 0, "recipe": SHORT, "points": points}


def point(record: Record) -> Point:
    """Return a trial's setting and its latent's state; the method must have one."""
    trial, method = record.trial, record.method
    # Latents are diagnosed where most is known of unseen users, which at full size is beyond `CELL`.
    cell = next(cell for key, cell in record.cells.items() if key.startswith("unseen/") and cell.collapse)
    assert cell.collapse is not None
    assert cell.latent_gain is not None
    return {
        "method": trial.label,
        "population": trial.population,
        "comparisons": trial.planted.get("comparisons"),
        "width": method["hidden"],
        "kl_weight": method["kl"],
        "accuracy": record.cells[CELL].accuracy,
        "latent_gain": cell.latent_gain.mean,
        "active_share": cell.collapse.active_units / cell.collapse.units,
        "kl": cell.collapse.kl,
        "mutual_information": cell.collapse.mutual_information,
    }


def mean(points: Sequence[Point], figure: str, where: Callable[[Point], bool]) -> float:
    """Return the mean of a figure over the points that are meant."""
    values = [each[figure] for each in points if where(each)]
    return sum(values) / len(values)


def by_weight(points: Sequence[Point], figure: str) -> dict[float, float]:
    """Return the mean of a figure by β, over all other settings of the narrow heads."""
    points = [each for each in points if each["width"] == WIDTHS[0]]
    weights = sorted({each["kl_weight"] for each in points})
    return {weight: mean(points, figure, lambda each, w=weight: each["kl_weight"] == w) for weight in weights}


def conditions(figures: Figures) -> dict[str, bool]:
    """Return whether VPL's gain falls along each axis, and SPL's latent stays where VPL's does not."""
    vpl, spl = (
        [each for each in figures["points"] if each["method"] == f"{name}-released"]
        for name in ("vpl", "spl")
    )

    def falls(axis: str, alive: float, dead: float) -> bool:
        # Wide heads were fitted at one β only.
        fixed, at = ("kl_weight", WEIGHTS[0]) if axis == "width" else ("width", WIDTHS[0])
        alike = [each for each in vpl if each[fixed] == at]
        gains = [mean(alike, "latent_gain", lambda each, v=value: each[axis] == v) for value in (alive, dead)]
        return gains[0] - gains[1] > MATTERS

    flat = [
        (abs(after - before) <= FLAT, weight)
        for (weight, before), (_, after) in pairwise(by_weight(spl, "accuracy").items())
    ]
    steep = {
        weight: abs(after - before) > FLAT
        for (weight, before), (_, after) in pairwise(by_weight(vpl, "accuracy").items())
    }
    return {
        "VPL's latent gain falls as β rises": falls("kl_weight", WEIGHTS[0], WEIGHTS[-1]),
        "VPL's latent gain falls as the decoder grows": falls("width", WIDTHS[0], WIDTHS[-1]),
        "VPL's latent gain falls as data thins": falls("comparisons", COMPARISONS[-1], COMPARISONS[0]),
        f"SPL keeps {ACTIVE_SHARE:.0%} of its units active everywhere": all(
            each["active_share"] >= ACTIVE_SHARE for each in spl
        ),
        "SPL's latent gain is positive everywhere": all(each["latent_gain"] > 0 for each in spl),
        "SPL is flat over a decade of β where VPL is not": any(
            calm and steep[weight] for calm, weight in flat
        ),
    }


def reading(figures: Figures) -> str:
    """Give gain, active units and accuracy of each method, and the gain by β."""
    said = []
    for name in dict.fromkeys(each["method"] for each in figures["points"]):
        own = [each for each in figures["points"] if each["method"] == name]
        gain, active, accuracy = (
            [each[figure] for each in own] for figure in ("latent_gain", "active_share", "accuracy")
        )
        said.append(
            f"{name} latent gain {min(gain):+.3f} to {max(gain):+.3f}, active {min(active):.0%} to "
            f"{max(active):.0%}, accuracy {min(accuracy):.3f} to {max(accuracy):.3f}"
        )
        if name.endswith("-released"):
            gains = by_weight(own, "latent_gain")
            said[-1] += " (gain by β " + ", ".join(f"{w:g} {gain:+.3f}" for w, gain in gains.items()) + ")"
    return f"Unseen users at 16 shots: {'; '.join(said)}."


def measure_living(bench: Bench) -> Figures:
    """Fit the defaults at full size; the grid above has the released heads."""
    size = "full" if bench.size == "default" else bench.size
    trials = [
        Trial("planted-noisy", s, name, each, size) for name, each in ROBUST.items() for s in ALIVE_SEEDS
    ]
    found = records(bench, trials)
    labels = dict.fromkeys(trial.label for trial in trials)
    by_label = {label: [r for r in found if r.trial.label == label] for label in labels}
    return {
        "population": "planted-noisy",
        "size": size,
        "cell": CELL,
        "seeds": {label: [record.trial.seed for record in each] for label, each in by_label.items()},
        "accuracy": {label: estimate(accuracies(each, CELL)) for label, each in by_label.items()},
        "points": [point(record) for record in found],
    }


def living_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether the defaults' latents live."""
    return {f"{name}: {ALIVE:.2f} or more": figures["accuracy"][name]["mean"] >= ALIVE for name in ROBUST}


def living_reading(figures: Figures) -> str:
    """Give every method's accuracy."""
    said = [
        f"{name} {found['mean']:.3f} [{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]"
        for name, found in figures["accuracy"].items()
    ]
    return f"Unseen users at 16 shots, planted-noisy, {figures['size']} size: {', '.join(said)}."


CLAIMS = (
    Claim(
        7,
        "collapse",
        "VPL's latent collapses as its decoder grows, β rises or data thins; SPL's stays alive",
        SOURCE,
        measure,
        conditions,
        reading,
    ),
    Claim(
        7,
        "living",
        "VPL and SPL carry taste on sparse, noisy preferences, with this project's defaults",
        "raypref",
        measure_living,
        living_conditions,
        living_reading,
    ),
)
