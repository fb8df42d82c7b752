"""The table of federated training, as recorded: `python jobs/benchmarks/federated_table.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIZES = "federated_sizes.json"
"""Of the study that `federated.py --study sizes` runs."""


def main() -> None:
    """Print accuracies, then what crossed the wire, privacy and speed."""
    study = json.loads((RESULTS / "federated.json").read_text())
    print("\n".join(accuracies(study)))
    print()
    if (RESULTS / SIZES).is_file():
        print("\n".join(accuracies(json.loads((RESULTS / SIZES).read_text()))))
        print()
    print("\n".join(costs(study, json.loads((RESULTS / "federated_scale.json").read_text()))))


def accuracies(study: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row a method: of the clients and of unseen users at 16 shots, in each setting."""
    settings = study["tables"]
    labels = list(dict.fromkeys(label for of in settings.values() for label in of))
    yield f"| clients / unseen users after 16 comparisons | {' | '.join(settings)} |"
    yield "|---|" + "---|" * len(settings)
    for label in labels:
        yield f"| {label} | {' | '.join(_both(of.get(label)) for of in settings.values())} |"


def _both(cells: Mapping[str, Any] | None) -> str:
    if cells is None:
        return ""
    seen = next(cell["mean"] for key, cell in cells.items() if key.startswith("seen/"))
    unseen = next(cell["mean"] for key, cell in cells.items() if key.endswith("/16"))
    return f"{seen:.3f} / {unseen:.3f}"


def costs(study: Mapping[str, Any], scale: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a run costs beside what it is compared with."""
    yield "| what | measured |"
    yield "|---|---|"
    for setting, curves in study["rounds"].items():
        if "FedVPA-GP" in curves:
            ends = [curve[-1] for curve in curves["FedVPA-GP"]]
            yield f"| adjusted Rand index of FedVPA-GP's groups at the end, {setting} | {_range(ends)} |"
    sent = study["traffic"]["FedVPA-GP"]
    yield (
        f"| bytes of a client and round, FedVPA-GP, D = 64 | up {sent['up']:,.0f}, of it its user vector "
        f"{sent['user_vector']:,.0f} (the paper's 256); down {sent['down']:,.0f} |"
    )
    for label, looks in study["privacy"].items():
        last = looks[-1]
        accuracy = list(last["accuracy"].values())[-1]
        epsilon = "∞" if last["epsilon"] is None else f"{last['epsilon']:.1f}"
        yield f"| {label}: ε after {last['round']} rounds; accuracy, unseen | {epsilon}; {accuracy:.3f} |"
    for size in scale["sizes"]:
        yield (
            f"| {size['users']:,} clients, 100 a round | {size['clients_per_s']['median']:.0f} clients/s, "
            f"{size['ratio']['median']:.2f} ({_range(size['ratio']['range'])}) of a plain loop, wanted "
            f"{scale['reach']:g}; peak {size['peak_mb']['median']:,.0f} MB |"
        )


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
