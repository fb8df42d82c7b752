"""The federated study's page: one HTML file with every figure inside, from what `federated.py` found.

    python jobs/benchmarks/federated_page.py

draws `results/federated.html` again from the recorded `results/federated.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from page import template

from raypref import files
from raypref.evaluate.canvas import PALETTE, Picture, label_ends, looks, picture

HERE = Path(__file__).parent
SHOTS = (0, 1, 4, 16)
EPSILONS = (0.2, 0.5, 1, 2, 5, 10, 20, 50)
"""Marked on the axis of ε."""


def write_page(path: Path, found: Mapping[str, Any]) -> None:
    """Write the page of a study, whole or not at all."""
    page = template("federated_page.html").render(
        tables=found["tables"],
        orders=found["orders"],
        traffic=found["traffic"],
        shots=SHOTS,
        groups=[group_agreement(setting, curves) for setting, curves in found["rounds"].items()],
        means=list(client_means(found["means"])),
        privacy=[price_of_privacy(found["privacy"])] if found["privacy"] else [],
    )
    files.write_text(path, page)


def group_agreement(setting: str, curves: Mapping[str, list[list[float | None]]]) -> Picture:
    """Draw how well the server's groups are the true ones, by round."""
    style = looks(list(curves), None)
    means = {label: _mean(of) for label, of in curves.items()}

    def draw(axes: Any) -> None:
        for label, value_R in means.items():
            axes.plot(np.arange(1, len(value_R) + 1), value_R, color=style[label].colour)
        axes.set(title=setting, xlabel="round", ylabel="adjusted Rand index", ylim=(-0.1, 1.05))
        label_ends(
            axes, [(float(value_R[-1]), label, style[label].colour) for label, value_R in means.items()]
        )

    said = ", ".join(f"{label} {value_R[-1]:.2f}" for label, value_R in means.items())
    name = f"groups-{setting.replace(', ', '-').replace(' ', '-')}"
    return picture(name, f"Adjusted Rand index of the groups, {setting}, last round: {said}.", draw, 0.72)


def _mean(curves: list[list[float | None]]) -> np.ndarray:
    """Return the mean of curves over seeds; a round without groups is no better than chance."""
    return np.array([[value or 0.0 for value in curve] for curve in curves]).mean(0)


def client_means(means: Mapping[str, Mapping[str, Any]]) -> Iterator[Picture]:
    """Draw where the clients are in the plane in which they differ most, round by round."""
    for number, found in means.items():
        at_C2, group_C = np.array(found["at"]), np.array(found["group"])

        def draw(
            axes: Any, number: str = number, at_C2: np.ndarray = at_C2, group_C: np.ndarray = group_C
        ) -> None:
            for group in np.unique(group_C):
                axes.scatter(*at_C2[group_C == group].T, s=12, color=PALETTE[int(group)], lw=0)
            axes.set(title=f"after round {number}", xlabel="", ylabel="")

        said = f"The means of {len(at_C2)} clients after round {number}, coloured by their true group."
        yield picture(f"means-{number}", said, draw, 0.96)


def price_of_privacy(runs: Mapping[str, list[Mapping[str, Any]]]) -> Picture:
    """Draw accuracy against ε as rounds go by; runs without noise stand at the right."""
    style = looks(list(runs), None)
    finite = [look["epsilon"] for of in runs.values() for look in of if look["epsilon"] is not None]
    beyond = 1.6 * max(finite, default=1.0)

    def draw(axes: Any) -> None:
        ends: list[tuple[float, str, str]] = []
        for label, of in runs.items():
            x = [look["epsilon"] or beyond for look in of]
            y = [_last(look["accuracy"]) for look in of]
            axes.plot(x, y, **style[label].line)
            ends.append((y[-1], label, style[label].colour))
        axes.set(title="accuracy and ε as rounds go by", xlabel="ε (no noise: right edge)", ylabel="accuracy")
        axes.set_xscale("log")
        axes.set_xticks(EPSILONS, [f"{value:g}" for value in EPSILONS], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlim(0.8 * min(finite, default=1.0), 1.1 * beyond)
        label_ends(axes, ends)

    last = (f"{label}: ε {of[-1]['epsilon']}, {_last(of[-1]['accuracy']):.3f}" for label, of in runs.items())
    return picture("privacy", f"At the end of each run: {'; '.join(last)}.", draw, 0.6)


def _last(accuracy: Mapping[str, float]) -> float:
    """Return the accuracy of unseen users at the most shots."""
    return list(accuracy.values())[-1]


if __name__ == "__main__":
    results = HERE / "results"
    write_page(results / "federated.html", json.loads((results / "federated.json").read_text()))
