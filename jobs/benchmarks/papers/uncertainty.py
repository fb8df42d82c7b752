"""VRF's lead among the users it is least certain of (VRF's third figure)."""

from __future__ import annotations

import numpy as np

from papers.claim import Bench, Claim, Figures
from papers.fitted import fitted
from papers.leads import SOURCE, had, recorded
from papers.paired import above, estimate, growth
from raypref.evaluate.protocol import evaluate

POPULATIONS = ("planted-noisy", "polis-warm")
SHOTS = 4
BINS = 3


def measure(bench: Bench) -> Figures:
    """Bin unseen users by VRF's own uncertainty about them; compare every method in the same bins."""
    found: Figures = {"shots": SHOTS, "seed": 0, "populations": {}}
    for population in had(bench, POPULATIONS):
        plan = recorded(bench, population)
        accuracy: dict[str, np.ndarray] = {}
        order_U = np.arange(0)
        for label, method in plan.methods.items():
            of = fitted(bench, population, method)
            evaluation = evaluate(of.model, of.items, of.tables, of.evaluate)
            users = evaluation.users(f"unseen/{plan.setting}/{SHOTS}")
            if label == "vrf":
                order_U = np.argsort(users["uncertainty"].to_numpy(), kind="stable")
            accuracy[label] = users["accuracy"].to_numpy()
        own_U = accuracy.pop("vrf")
        found["populations"][population] = {
            peer: by_bin((own_U - accuracy_U)[order_U]) for peer, accuracy_U in accuracy.items()
        }
    return found


def by_bin(delta_U: np.ndarray) -> Figures:
    """Return the lead in equal shares of users, certain first, and how much larger the last is."""
    bins = np.array_split(delta_U, BINS)
    return {"leads": [estimate(each) for each in bins], "growth": growth(bins[0], bins[-1])}


def conditions(figures: Figures) -> dict[str, bool]:
    """Return whether the lead over each peer is larger among the least certain users, beyond the interval."""
    return {
        f"{population}: the lead over {peer} grows": above(found["growth"])
        for population, by_peer in figures["populations"].items()
        for peer, found in by_peer.items()
    }


def reading(figures: Figures) -> str:
    """Give the lead over each peer, from the most certain users to the least."""
    said = [
        f"{population}: "
        + ", ".join(
            f"{peer} " + " → ".join(f"{100 * each['mean']:+.1f}" for each in found["leads"])
            for peer, found in by_peer.items()
        )
        for population, by_peer in figures["populations"].items()
    ]
    return f"VRF's lead at {SHOTS} shots in points, users it is certain of → uncertain: {'; '.join(said)}."


CLAIMS = (
    Claim(
        2,
        "uncertainty",
        "VRF's lead grows with the uncertainty about the user",
        SOURCE,
        measure,
        conditions,
        reading,
    ),
)
