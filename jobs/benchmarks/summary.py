"""What a population's records say: means over seeds, intervals over users, differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from record import CellRecord, Record

from raypref.errors import InputError
from raypref.metrics import bootstrap


def score(record: Record) -> float | None:
    """Return the mean accuracy of unseen users over the shots, None of a failed trial."""
    cells = [cell.accuracy for key, cell in record.cells.items() if key.startswith("unseen/")]
    return float(np.mean(cells)) if cells else None


def summarise(own: Mapping[int, Record], baseline: Mapping[int, Record]) -> dict[str, Any]:
    """Return a method's figures: means over seeds, and intervals over the users of all seeds."""
    if not own:
        return {}
    records = list(own.values())
    seconds = [record.fit_seconds for record in records]
    return {
        "method": records[0].method,
        "parameters": records[0].parameters and records[0].parameters.model_dump(),
        "seen_users": [record.seen_users for record in records],
        "fit_seconds": {"median": float(np.median(seconds)), "all": seconds},
        "steps": [record.steps for record in records],
        "adaptation": [one.model_dump() for record in records for one in record.adaptation],
        "cells": {key: _cell(key, own, baseline) for key in records[0].cells},
    }


def _cell(key: str, own: Mapping[int, Record], baseline: Mapping[int, Record]) -> dict[str, Any]:
    cells = [record.cells[key] for record in own.values()]
    accuracy_U = np.concatenate([cell.user_accuracy for cell in cells])
    difference = None
    if paired := [seed for seed in own if seed in baseline]:
        delta_U = np.concatenate(
            [_paired(own[seed].cells[key], baseline[seed].cells[key]) for seed in paired]
        )
        difference = {"mean": float(delta_U.mean()), "interval": _interval(delta_U)}
    gains = [cell.latent_gain.mean for cell in cells if cell.latent_gain]
    collapses = [cell.collapse.model_dump() for cell in cells if cell.collapse]
    return {
        **{name: _mean(cells, name) for name in ("accuracy", "accuracy_per_pair", "nll", "ece")},
        "by_seed": [cell.accuracy for cell in cells],
        "interval": _interval(accuracy_U),
        "users": sum(cell.users for cell in cells),
        "difference": difference,
        "uncertainty": {"source": cells[0].uncertainty_source, "by_user": _bins(cells)},
        "latent_gain": float(np.mean(gains)) if gains else None,
        "collapse": {n: float(np.mean([c[n] for c in collapses])) for n in collapses[0]}
        if collapses
        else None,
    }


def _paired(own: CellRecord, other: CellRecord) -> np.ndarray:
    if own.user != other.user:
        raise InputError("two methods were judged on different users; delete the work folder and run again.")
    return np.subtract(own.user_accuracy, other.user_accuracy)


def _interval(value_U: np.ndarray) -> list[float]:
    estimate = bootstrap(value_U)
    return [estimate.low, estimate.high]


def _mean(cells: Sequence[CellRecord], name: str) -> float:
    return float(np.mean([getattr(cell, name) for cell in cells]))


def _bins(cells: Sequence[CellRecord]) -> list[dict[str, float]]:
    """Return the users of all seeds by uncertainty; equal shares of each seed's users are put together."""
    bins: list[dict[str, float]] = []
    for each in zip(*(cell.by_user for cell in cells), strict=False):
        users = np.array([one.users for one in each])
        bins.append(
            {
                "users": int(users.sum()),
                "uncertainty": float(np.average([one.uncertainty for one in each], weights=users)),
                "accuracy": float(np.average([one.accuracy.mean for one in each], weights=users)),
            }
        )
    return bins


def failures(result: Mapping[str, Any]) -> list[str]:
    """Return the labels of methods of which a trial failed, tuning ones too."""
    return [
        label
        for label, method in result["methods"].items()
        if method["failed"] or any(candidate["error"] for candidate in method["candidates"])
    ]


def table(result: Mapping[str, Any]) -> str:
    """Return accuracies by method and cell as text."""
    found = {label: method["cells"] for label, method in result["methods"].items() if "cells" in method}
    keys = list(next(iter(found.values()), {}))
    lines = [result["population"].ljust(24) + "".join(f"{key:>16}" for key in keys)]
    for label, cells in found.items():
        lines.append(f"  {label}".ljust(24) + "".join(f"{cells[key]['accuracy']:16.3f}" for key in keys))
    return "\n".join(lines)
