"""VRF's lead over the others: everywhere, from the first comparison, and growing with diversity."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from record import Record, Trial

from papers.claim import Bench, Claim, Figures
from papers.paired import above, below, estimate, growth, lead, points, records
from papers.published import Method
from raypref.errors import InputError

SOURCE = "VRF, arXiv 2604.00997"
POPULATIONS = ("planted-noisy", "planted-extreme", "polis-warm")
DIVERSITY = ("planted-noisy-alike", "planted-noisy", "planted-noisy-diverse")
"""From users who want nearly the same to users who each want one thing."""
PEERS = (
    "bt",
    "lore-published",
    "pal-published",
    "pref-published",
    "vpl-released",
    "lore",
    "pal",
    "pref",
    "vpl",
)
"""BT, what the paper compares itself with, and what this project makes of it."""
SHOTS = (1, 4, 16)


@dataclass(frozen=True)
class Recorded:
    """What `methods.py` found on one population."""

    setting: str
    seeds: list[int]
    methods: dict[str, Method]
    """What was fitted, by label: VRF and its peers."""


def recorded(bench: Bench, population: str) -> Recorded:
    """Read what `methods.py` chose for a population.

    Raises:
        InputError: it has not run.
    """
    path = bench.results / f"methods_{population}.json"
    if not path.is_file():
        raise InputError(f"{path}: missing; run jobs/benchmarks/methods.py first, at the same size.")
    found: dict[str, Any] = json.loads(path.read_text())
    methods = {
        label: found["methods"][label]["config"] for label in ("vrf", *PEERS) if label in found["methods"]
    }
    return Recorded(found["setting"], found["seeds"], methods)


ByLabel = dict[str, list[Record]]


def records_of(bench: Bench, population: str) -> tuple[Recorded, ByLabel]:
    """Return the records of VRF and its peers, one a seed; `methods.py` has kept them."""
    plan = recorded(bench, population)
    trials = [
        Trial(population, seed, label, method, bench.size)
        for label, method in plan.methods.items()
        for seed in plan.seeds
    ]
    found = records(bench, trials)
    return plan, {label: [r for r in found if r.trial.label == label] for label in plan.methods}


def had(bench: Bench, populations: Iterable[str]) -> list[str]:
    """Return the populations to look at: without a folder of data, the planted ones."""
    return [name for name in populations if bench.data or name.startswith("planted")]


def measure_leads(bench: Bench) -> Figures:
    """Compare VRF with every peer, user by user, in every cell."""
    leads: Figures = {}
    for population in had(bench, POPULATIONS):
        plan, by_label = records_of(bench, population)
        unseen = [f"unseen/{plan.setting}/{shots}" for shots in SHOTS]
        for peer in plan.methods.keys() - {"vrf"}:
            for cell in (f"seen/{plan.setting}/all", *unseen):
                delta_U = lead(by_label["vrf"], by_label[peer], cell)
                leads.setdefault(peer, {})[f"{population} {cell}"] = estimate(delta_U)
    return {"leads": {peer: leads[peer] for peer in PEERS if peer in leads}}


def lead_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether VRF is behind a peer nowhere beyond the interval, and ahead somewhere."""
    return {
        f"never behind {peer}, ahead somewhere": any(map(above, cells.values()))
        and not any(map(below, cells.values()))
        for peer, cells in figures["leads"].items()
    }


def lead_reading(figures: Figures) -> str:
    """Say in how many cells VRF is ahead and behind of each peer, and where it is furthest behind."""
    said = []
    for peer, cells in figures["leads"].items():
        ahead, behind = (sum(map(sign, cells.values())) for sign in (above, below))
        said.append(f"{peer} {ahead}/{len(cells)}" + (f" (behind in {behind})" if behind else ""))
    mean, peer, cell = min(
        (found["mean"], peer, cell)
        for peer, cells in figures["leads"].items()
        for cell, found in cells.items()
    )
    return (
        f"Cells where VRF is ahead beyond the interval: {', '.join(said)}. "
        f"Lowest lead: {100 * mean:+.1f} points over {peer} on {cell}."
    )


def measure_diversity(bench: Bench) -> Figures:
    """Compare VRF's lead on unseen users between populations that are more and less alike."""
    cell = "unseen/cold/16"
    found = {name: records_of(bench, name)[1] for name in DIVERSITY}
    leads = {
        peer: [lead(by_label["vrf"], by_label[peer], cell) for by_label in found.values()]
        for peer in PEERS
        if all(peer in by_label for by_label in found.values())
    }
    return {
        "cell": cell,
        "populations": list(DIVERSITY),
        "leads": {peer: [estimate(delta_U) for delta_U in each] for peer, each in leads.items()},
        "growth": {peer: growth(each[0], each[-1]) for peer, each in leads.items()},
    }


def growth_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether the lead over each peer is larger where users are most diverse, beyond the interval."""
    return {f"the lead over {peer} grows": above(found) for peer, found in figures["growth"].items()}


def diversity_reading(figures: Figures) -> str:
    """Give the lead over each peer, from the most alike to the most diverse users."""
    said = [
        f"{peer} " + " → ".join(f"{100 * found['mean']:+.1f}" for found in each)
        for peer, each in figures["leads"].items()
    ]
    return f"VRF's lead at 16 shots in points, Dirichlet α 1 → 0.1 → 0.03: {', '.join(said)}."


def measure_one(bench: Bench) -> Figures:
    """Compare VRF after one comparison with BT."""
    leads: Figures = {}
    for population in had(bench, POPULATIONS):
        plan, by_label = records_of(bench, population)
        leads[population] = estimate(lead(by_label["vrf"], by_label["bt"], f"unseen/{plan.setting}/1"))
    return {"leads": leads}


def one_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether it is ahead on each population beyond the interval."""
    return {f"ahead on {population}": above(found) for population, found in figures["leads"].items()}


def one_reading(figures: Figures) -> str:
    """Give the lead on each population."""
    said = [f"{population} {points(found)}" for population, found in figures["leads"].items()]
    return f"Points over BT after one comparison: {', '.join(said)}."


CLAIMS = (
    Claim(
        1,
        "leads",
        "VRF is at least as accurate as BT, PAL, LoRe, PReF and VPL for seen and unseen users",
        SOURCE,
        measure_leads,
        lead_conditions,
        lead_reading,
    ),
    Claim(
        2,
        "diversity",
        "VRF's lead grows with the diversity of preferences",
        SOURCE,
        measure_diversity,
        growth_conditions,
        diversity_reading,
    ),
    Claim(
        3,
        "one_comparison",
        "VRF beats BT with a single comparison",
        SOURCE,
        measure_one,
        one_conditions,
        one_reading,
    ),
)
