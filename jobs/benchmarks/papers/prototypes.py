"""FedVPA-GP's prototypes, its prior, and the switch of a preference by switching z."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import torch
from populations import missing
from record import Trial
from torch import Tensor

from papers.claim import Bench, Claim, Figures
from papers.fitted import Fitted, fitted
from papers.paired import above, accuracies, estimate, lead, points, records
from papers.published import Method
from raypref.config import PlantedConfig
from raypref.data.inference import contexts
from raypref.data.planted import USERS_PER_BLOCK, plant, user_weights
from raypref.data.tables import Tables
from raypref.evaluate.protocol import frozen
from raypref.methods.fedvpa import FedVPA
from raypref.types import Pairs

SOURCE = "FedVPA-GP, arXiv 2605.30873"
SEEDS = (0, 1, 2)
CELL = "unseen/cold/16"
PURE = 0.9
"""Share of users at their own group's prototype from which on groups count as separated."""


@dataclass(frozen=True)
class Conflict:
    """A population of groups that want different things."""

    population: str
    kinds: int
    """Groups in it, one prototype each; the first two are the ones in conflict."""
    planted: Mapping[str, Any] = field(default_factory=dict)


CONFLICTS = {
    "two planted rewards": Conflict("planted-noisy", 2, {"rewards": 2, "shared": 0.0, "alpha": 0.02}),
    "helpfulness against verbosity": Conflict("helpsteer2", 3),
}
SMALL: Method = {"type": "fedvpa", "recipe": {"users_per_step": 32}}
"""As `methods.py` trains it at the default size."""
VARIANTS: dict[str, Method] = {
    "FedVPL": {"prior": "normal", "orthogonal": 0.0},
    "prior": {"prior": "mixture", "orthogonal": 0.0},
    "prototypes": {"prior": "normal", "orthogonal": 1e-2},
    "both": {"prior": "mixture", "orthogonal": 1e-2},
}


def _present(bench: Bench) -> Iterator[tuple[str, Conflict]]:
    for name, conflict in CONFLICTS.items():
        if not missing(conflict.population, bench.data):
            yield name, conflict


def measure_separation(bench: Bench) -> Figures:
    """Place unseen users among the prototypes, and judge each group by its own prototype and the other's."""
    found: Figures = {}
    for name, conflict in _present(bench):
        method = {**SMALL, "prototypes": conflict.kinds}
        found[name] = separation(fitted(bench, conflict.population, method, planted=conflict.planted))
    return {"seed": 0, "populations": found}


@torch.no_grad()
def separation(of: Fitted) -> Figures:
    """Return how well prototypes tell the two groups apart, and what switching to them does."""
    model = of.model
    assert isinstance(model, FedVPA)
    with frozen(model):
        judged = of.tables.comparisons("unseen", ["cold"])
        group_U = groups(of.tables)[judged.user_U]
        judged = judged.select(judged.user_U[group_U < 2])
        group_U = group_U[group_U < 2]
        known = of.tables.comparisons("unseen", ["train"]).select(judged.user_U)
        context, test = (next(contexts(of.items, part, len(group_U))) for part in (known, judged))
        user_BZ = model.infer(model.encode(context), context.mask_BP)
        mean_BL = user_BZ.chunk(2, -1)[0]
        near_B = (mean_BL @ model.prototypes_ML.mT).argmax(1).numpy()
        own = matching(group_U, near_B, len(model.prototypes_ML))
        prototype_MZ = model.prototype_users()
        centre_MZ = torch.stack(
            [
                model.steer(mean_BL[near_B == place].mean(0)) if (near_B == place).any() else user_MZ
                for place, user_MZ in enumerate(prototype_MZ)
            ]
        )
        return {
            "users": len(group_U),
            "purity": float((np.array(own)[group_U] == near_B).mean()),
            "silhouette": silhouette(mean_BL.double().numpy(), group_U),
            "own_vector": estimate(_accuracy(model, test, user_BZ)),
            "nobody": estimate(_accuracy(model, test, torch.zeros_like(user_BZ))),
            "switch_to_prototype": _switched(model, test, prototype_MZ, own, group_U),
            "switch_to_centre": _switched(model, test, centre_MZ, own, group_U),
        }


def groups(tables: Tables) -> np.ndarray:
    """Return the group of every user of the tables: the reward a planted user weighs most, else the taste."""
    names = tables.users["user_id"].to_pylist()
    if (planted := tables.metadata.options.get("planted")) is None:
        return np.array([int(name.rpartition("-")[2]) for name in names])
    world = plant(PlantedConfig.model_validate(planted))
    blocks = range(-(-world.users // USERS_PER_BLOCK))
    most_U = np.concatenate([user_weights(world, block).argmax(1) for block in blocks])
    return most_U[np.array(names, int)]


def matching(group_U: np.ndarray, near_U: np.ndarray, prototypes: int) -> tuple[int, ...]:
    """Return each group's prototype: different ones, such that most users are at their own."""
    kinds = int(group_U.max()) + 1
    return max(
        permutations(range(prototypes), kinds), key=lambda own: (np.array(own)[group_U] == near_U).sum()
    )


def silhouette(mean_UL: np.ndarray, group_U: np.ndarray) -> float:
    """Return the mean of (b − a) / max(a, b), distance to the other group and to the own (Rousseeuw 1987)."""
    distance_UU = np.sqrt(((mean_UL[:, None] - mean_UL[None]) ** 2).sum(-1))
    same_UU = group_U[:, None] == group_U[None]
    own_U = (distance_UU * same_UU).sum(1) / np.maximum(same_UU.sum(1) - 1, 1)
    other_U = (distance_UU * ~same_UU).sum(1) / np.maximum((~same_UU).sum(1), 1)
    return float(((other_U - own_U) / np.maximum(np.maximum(own_U, other_U), 1e-12)).mean())


def _accuracy(model: FedVPA, test: Pairs, user_BZ: Tensor) -> np.ndarray:
    right_BP = (model(test, user_BZ).logit_BN() > 0).float() * test.mask_BP
    return (right_BP.sum(1) / test.mask_BP.sum(1)).double().numpy()


def _switched(
    model: FedVPA, test: Pairs, user_MZ: Tensor, own: tuple[int, ...], group_U: np.ndarray
) -> Figures:
    own_U, other_U = np.array(own)[group_U], np.array(own)[1 - group_U]
    to_own, to_other = (_accuracy(model, test, user_MZ[torch.from_numpy(each)]) for each in (own_U, other_U))
    return {
        "own": estimate(to_own),
        "other": estimate(to_other),
        "gain": [estimate((to_own - to_other)[group_U == group]) for group in (0, 1)],
    }


def separation_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether users stand at their group's prototype, and apart from the other group."""
    found = figures["populations"]
    return {
        **{
            f"{name}: {PURE:.0%} at their own prototype": each["purity"] >= PURE
            for name, each in found.items()
        },
        **{f"{name}: silhouette above 0": each["silhouette"] > 0 for name, each in found.items()},
    }


def separation_reading(figures: Figures) -> str:
    """Give purity and silhouette."""
    said = [
        f"{name}: {each['purity']:.0%} at their own prototype, silhouette {each['silhouette']:.2f}"
        for name, each in figures["populations"].items()
    ]
    return f"Unseen users after 16 comparisons; {'; '.join(said)}."


def switching_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether each group agrees more with its own z than with the other's, beyond the interval."""
    return {
        f"{name}: switching to the {to} turns both groups": all(map(above, each[f"switch_to_{to}"]["gain"]))
        for name, each in figures["populations"].items()
        for to in ("prototype", "centre")
    }


def switching_reading(figures: Figures) -> str:
    """Give the accuracy under the own z and the other's."""
    said: list[str] = []
    for name, each in figures["populations"].items():
        switched = ", ".join(
            f"own {to} {each[f'switch_to_{to}']['own']['mean']:.3f}, the other's "
            f"{each[f'switch_to_{to}']['other']['mean']:.3f}"
            for to in ("prototype", "centre")
        )
        own, nobody = each["own_vector"]["mean"], each["nobody"]["mean"]
        said.append(f"{name}: {switched}, own comparisons {own:.3f}, nobody's {nobody:.3f}")
    return f"Accuracy by whose z is used. {'. '.join(said)}."


def measure_prior(bench: Bench) -> Figures:
    """Fit FedVPA-GP with and without its prior and its prototypes."""
    found: Figures = {}
    for name, conflict in _present(bench):
        trials = [
            Trial(
                conflict.population,
                seed,
                label,
                {**SMALL, "prototypes": conflict.kinds, **variant},
                bench.size,
                conflict.planted,
            )
            for label, variant in VARIANTS.items()
            for seed in SEEDS
        ]
        all_of = records(bench, trials)
        by_label = {label: [r for r in all_of if r.trial.label == label] for label in VARIANTS}
        found[name] = {
            "accuracy": {label: estimate(accuracies(each, CELL)) for label, each in by_label.items()},
            "prior_alone": estimate(lead(by_label["prior"], by_label["FedVPL"], CELL)),
            "prior_with_prototypes": estimate(lead(by_label["both"], by_label["prototypes"], CELL)),
            "prototypes_alone": estimate(lead(by_label["prototypes"], by_label["FedVPL"], CELL)),
        }
    return {"cell": CELL, "seeds": list(SEEDS), "populations": found}


def prior_conditions(figures: Figures) -> dict[str, bool]:
    """Return whether the prior of peers gains over N(0, 1) beyond the interval."""
    return {
        f"{name}: it gains {how.replace('_', ' ')}": above(each[f"prior_{how}"])
        for name, each in figures["populations"].items()
        for how in ("alone", "with_prototypes")
    }


def prior_reading(figures: Figures) -> str:
    """Give the accuracy of all four variants and what the prior gains."""
    said = []
    for name, each in figures["populations"].items():
        means = ", ".join(f"{label} {found['mean']:.3f}" for label, found in each["accuracy"].items())
        gains = ", ".join(points(each[how], 2) for how in ("prior_alone", "prior_with_prototypes"))
        said.append(f"{name}: {means}; points from the prior alone and beside prototypes {gains}")
    return f"Unseen users at 16 shots; {'. '.join(said)}."


CLAIMS = (
    Claim(
        8,
        "prototypes",
        "FedVPA-GP's prototypes separate conflicting groups",
        SOURCE,
        measure_separation,
        separation_conditions,
        separation_reading,
    ),
    Claim(
        8,
        "peer_prior",
        "FedVPA-GP's mixture of peers is a better prior than N(0, I)",
        SOURCE,
        measure_prior,
        prior_conditions,
        prior_reading,
    ),
    Claim(
        8,
        "switching",
        "Switching z switches the preference",
        SOURCE,
        measure_separation,
        switching_conditions,
        switching_reading,
    ),
)
