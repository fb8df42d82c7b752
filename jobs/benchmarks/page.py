"""The benchmark's page: one HTML file with every figure inside, from what `methods.py` found.

    python jobs/benchmarks/page.py

draws `results/methods.html` again from the recorded `results/methods_*.json` and `results/claims_*.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypref import files
from raypref.evaluate.canvas import Look, Picture, label_ends, looks, picture

HERE = Path(__file__).parent
BASELINE = "bt"
HEAT_SHOTS = (1, 16)
FULL_HEAT = 0.15
"""Difference to the baseline from which on a cell has all its colour."""
COST_SHOTS = 16

Result = Mapping[str, Any]
"""What `methods.py` writes of one population."""


@dataclass(frozen=True)
class Heat:
    """A method on a population: accuracy, difference to the baseline, and how strong its colour is."""

    accuracy: float
    difference: float | None
    verdict: str
    """better, worse, or open where the interval holds zero."""
    strength: int
    """Per cent."""


@dataclass(frozen=True)
class Cost:
    """What a method costs on one population."""

    label: str
    shared: int
    per_user: int
    fit_seconds: float
    alone_us: float | None
    """Microseconds to infer one user from stored evidence."""
    many_us: float | None
    """The same per user of 10,000 at once."""


@dataclass(frozen=True)
class Latents:
    """What became of a method's posteriors on one population."""

    label: str
    population: str
    gain: float | None
    active: float
    units: float
    kl: float
    information: float


def template(name: str) -> Any:
    """Return a page's template, which stands beside this file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_page(results: Mapping[str, Result], path: Path) -> None:
    """Write the page of all populations; claims are those recorded in the same folder."""
    labels = list(dict.fromkeys(label for result in results.values() for label in fitted(result)))
    claims = [json.loads(file.read_text()) for file in sorted(path.parent.glob("claims_*.json"))]
    counts = [claim["figures"] for claim in claims if "parameters" in claim["figures"]]
    page = template("page.html").render(
        results=results,
        first=next(iter(results.values())),
        labels=labels,
        variants={
            label for result in results.values() for label in result["methods"] if variant(result, label)
        },
        curves=[drawn for result in results.values() for drawn in curves(result)],
        heats={shots: heat(results, labels, shots) for shots in HEAT_SHOTS},
        costs={name: costs(result) for name, result in results.items()},
        cost_shots=COST_SHOTS,
        latents=[row for result in results.values() for row in latents(result)],
        failed=[
            (label, name, failure)
            for name, result in results.items()
            for label, method in result["methods"].items()
            for failure in method["failed"]
        ],
        claims=claims,
        growth=[parameters(figures) for figures in counts],
    )
    files.write_text(path, page)


def fitted(result: Result) -> dict[str, Result]:
    """Return the methods that were fitted, by label; where every seed failed there is nothing to show."""
    return {label: method for label, method in result["methods"].items() if "cells" in method}


def variant(result: Result, label: str) -> bool:
    """Return whether a method is as its authors released it."""
    return result["methods"][label]["variant"]


def style(result: Result) -> dict[str, Look]:
    """Return each method's look: a released one has the colour of this project's, dashed."""
    kinds = {label: method["method"]["type"] for label, method in fitted(result).items()}
    by_kind = looks(list(dict.fromkeys(kinds.values())), BASELINE)
    return {
        label: Look(
            by_kind[kind].colour, by_kind[kind].marker, by_kind[kind].dashed or variant(result, label)
        )
        for label, kind in kinds.items()
    }


def curves(result: Result) -> Iterator[Picture]:
    """Yield accuracy over shots, of this project's methods and of those as released, on one scale."""
    own = [label for label in fitted(result) if not variant(result, label)]
    released = [label for label in fitted(result) if variant(result, label)]
    if released and BASELINE in own:
        released.insert(0, BASELINE)
    keys = [f"unseen/{result['setting']}/{shots}" for shots in result["shots"]]
    ends = [end for label in own + released for key in keys for end in _cell(result, label, key)["interval"]]
    limits = min(ends) - 0.01, max(ends) + 0.01
    for suffix, labels in (("", own), (", as released", released)):
        if labels:
            yield _curve(result, result["population"] + suffix, labels, keys, limits)


def _cell(result: Result, label: str, key: str) -> Result:
    return result["methods"][label]["cells"][key]


def _curve(
    result: Result, title: str, labels: Sequence[str], keys: Sequence[str], limits: tuple[float, float]
) -> Picture:
    look = style(result)
    x = range(len(keys))

    def draw(axes: Any) -> None:
        ends: list[tuple[float, str, str]] = []
        for label in labels:
            cells = [_cell(result, label, key) for key in keys]
            low, high = zip(*(cell["interval"] for cell in cells), strict=True)
            mean = [cell["accuracy"] for cell in cells]
            axes.fill_between(x, low, high, color=look[label].colour, alpha=0.07, lw=0)
            axes.plot(x, mean, **look[label].line)
            ends.append((mean[-1], label.split("-")[0], look[label].colour))
        axes.set(title=title, ylabel="accuracy, mean over users")
        axes.set_xlabel(f"comparisons given by the user, {result['setting']} items")
        axes.set_ylim(*limits)
        axes.set_xticks(x, [str(shots) for shots in result["shots"]])
        label_ends(axes, ends)

    first, last = keys[0], keys[-1]
    said = "; ".join(
        f"{label} from {_cell(result, label, first)['accuracy']:.3f} at {result['shots'][0]} to "
        f"{_cell(result, label, last)['accuracy']:.3f} at {result['shots'][-1]}"
        for label in labels
    )
    name = "curve-" + title.replace(", ", "-").replace(" ", "-")
    return picture(name, f"{title}: accuracy of unseen users by number of comparisons; {said}.", draw)


def heat(results: Mapping[str, Result], labels: Sequence[str], shots: int) -> dict[str, list[Heat | None]]:
    """Return each method's row over the populations; None where it was not fitted."""
    return {label: [_heat(result, label, shots) for result in results.values()] for label in labels}


def _heat(result: Result, label: str, shots: int) -> Heat | None:
    cells: Result = fitted(result).get(label, {}).get("cells", {})
    cell = cells.get(f"unseen/{result['setting']}/{shots}")
    if cell is None:
        return None
    difference = cell["difference"]
    if difference is None or label == BASELINE:
        return Heat(cell["accuracy"], None, "open", 0)
    low, high = difference["interval"]
    verdict = "better" if low > 0 else "worse" if high < 0 else "open"
    strength = 0 if verdict == "open" else round(10 + 50 * min(1.0, abs(difference["mean"]) / FULL_HEAT))
    return Heat(cell["accuracy"], difference["mean"], verdict, strength)


def costs(result: Result) -> list[Cost]:
    """Return what each method costs on a population."""
    return [
        Cost(
            label,
            method["parameters"]["shared"],
            method["parameters"]["per_user"],
            method["fit_seconds"]["median"],
            *(_microseconds(method["adaptation"], users) for users in (1, 10_000)),
        )
        for label, method in fitted(result).items()
    ]


def _microseconds(adaptation: Sequence[Result], users: int) -> float | None:
    for one in adaptation:
        if (one["shots"], one["users"]) == (COST_SHOTS, users):
            return 1e6 * one["infer_seconds"] / users
    return None


def latents(result: Result) -> list[Latents]:
    """Return the state of every method's posteriors, where most is known of unseen users."""
    key = f"unseen/{result['setting']}/{result['shots'][-1]}"
    return [
        Latents(
            label,
            result["population"],
            cell["latent_gain"],
            cell["collapse"]["active_units"],
            cell["collapse"]["units"],
            cell["collapse"]["kl"],
            cell["collapse"]["mutual_information"],
        )
        for label in fitted(result)
        if (cell := _cell(result, label, key))["collapse"]
    ]


def parameters(figures: Result) -> Picture:
    """Draw what is trained against seen users, both in powers of ten: as published, dashed, and here."""
    counts: Mapping[str, list[int]] = figures["parameters"]
    kinds = {name: name.removeprefix("raypref ").lower() for name in counts}
    look = looks(list(dict.fromkeys(kinds.values())), BASELINE)

    def draw(axes: Any) -> None:
        for name, count in counts.items():
            line = {**look[kinds[name]].line, "marker": ""}
            if not name.startswith("raypref "):
                line["linestyle"] = (0, (4, 2))
            axes.plot(figures["users"], count, **line)
        axes.set(xscale="log", yscale="log", xlabel="seen users", ylabel="trained numbers")
        axes.set_title(f"Size, D = {figures['width']}: released dashed")
        axes.set_xlim(min(figures["users"]), max(figures["users"]))
        last = {kinds[name]: count[-1] for name, count in counts.items()}
        _label_log_ends(axes, [(count, kind, look[kind].colour) for kind, count in last.items()])

    said = "; ".join(f"{name} from {count[0]:,} to {count[-1]:,}" for name, count in counts.items())
    return picture("parameters", f"Trained numbers by seen users: {said}.", draw)


def _label_log_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names at line ends of a logarithmic axis, which `label_ends` takes for a linear one."""
    from math import log10

    low, high = (log10(end) for end in axes.get_ylim())
    # A linear axis that covers the same powers of ten lies over it, unseen.
    twin = axes.twinx()
    twin.set_ylim(low, high)
    twin.axis("off")
    label_ends(twin, [(log10(y), text, colour) for y, text, colour in ends])


def main() -> None:
    """Draw the recorded page again."""
    found = [json.loads(file.read_text()) for file in sorted((HERE / "results").glob("methods_*.json"))]
    write_page({result["population"]: result for result in found}, HERE / "results/methods.html")


if __name__ == "__main__":
    main()
