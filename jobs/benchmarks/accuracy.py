"""Accuracy of methods on one population over several seeds, paired with the baseline user by user.

    raypref embed -c jobs/configs/polis.yaml
    python jobs/benchmarks/accuracy.py jobs/benchmarks/accuracy/polis-warm.yaml --seeds 0 1 2

The YAML has a run and the methods to compare on it. A seed names the split (or the planted world), the
initialisation and the draws of the shots.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from raypref import files
from raypref.checkpoint import library_versions
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.prepare import prepare
from raypref.data.tables import Tables
from raypref.errors import RayprefError
from raypref.evaluate.protocol import evaluate
from raypref.evaluate.result import Evaluation
from raypref.metrics import bootstrap
from raypref.train.session import fit

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the benchmark, print its table and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("benchmark", type=Path, metavar="YAML")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="default: all of the benchmark's")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c")
    parser.add_argument("-o", "--output", type=Path, help="default: results/accuracy_NAME.json")
    arguments = parser.parse_args()
    benchmark = yaml.safe_load(arguments.benchmark.read_text())
    methods = {
        name: method
        for name, method in benchmark["methods"].items()
        if not arguments.methods or name in arguments.methods
    }
    try:
        result = run(benchmark["run"], methods, arguments.seeds, arguments.overrides)
    except RayprefError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    output = arguments.output or RESULTS / f"accuracy_{arguments.benchmark.stem}.json"
    files.write_text(output, json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


def run(
    base: Mapping[str, Any], methods: Mapping[str, Any], seeds: list[int], overrides: list[str]
) -> dict[str, Any]:
    """Fit and evaluate every method on every seed."""
    found: dict[str, list[Evaluation]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            config = configured(base, seed, folder, next(iter(methods.values())), overrides)
            if config.input.path is None:
                write_planted(config.planted, config.items_dir, config.tables_dir)
            else:
                prepare(config)
            items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
            for name, method in methods.items():
                config = configured(base, seed, folder, method, overrides)
                start = time.perf_counter()
                model = fit(config, items, tables).model
                seconds[name].append(time.perf_counter() - start)
                found[name].append(evaluate(model, items, tables, config.evaluate))
                print(f"seed {seed} {name}: {brief(found[name][-1])}", file=sys.stderr, flush=True)
    return {
        "run": dict(base),
        "methods": dict(methods),
        "overrides": overrides,
        "seeds": seeds,
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": library_versions(),
        "seconds": {name: {"median": float(np.median(each)), "all": each} for name, each in seconds.items()},
        "cells": {name: summarise(each, found) for name, each in found.items()},
    }


def configured(
    base: Mapping[str, Any], seed: int, folder: str, method: Mapping[str, Any], overrides: list[str]
) -> RunConfig:
    """Return the run of one method on one seed; what it writes goes to `folder`."""
    raw = json.loads(json.dumps(dict(base)))
    for section in ("planted", "prepare", "train"):
        raw.setdefault(section, {})["seed"] = seed
    raw["method"], raw["tables"] = method, f"{folder}/tables"
    if "input" not in raw:
        raw["items"] = f"{folder}/items"
    return parse_config(raw, overrides, "benchmark")


def brief(evaluation: Evaluation) -> str:
    """Return one line: accuracies of all cells."""
    return " ".join(f"{cell.key} {cell.accuracy_per_user.mean:.4f}" for cell in evaluation.cells)


def summarise(own: list[Evaluation], found: Mapping[str, list[Evaluation]]) -> dict[str, Any]:
    """Return every cell's figures: means over seeds, and intervals over the users of all seeds."""
    baseline = found.get(own[0].config.baseline)
    cells: dict[str, Any] = {}
    for cell in own[0].cells:
        each = [next(other for other in evaluation.cells if other.key == cell.key) for evaluation in own]
        accuracy = np.concatenate([e.users(cell.key)["accuracy"].to_numpy() for e in own])
        cells[cell.key] = {
            "accuracy": float(np.mean([one.accuracy_per_user.mean for one in each])),
            "accuracy_by_seed": [one.accuracy_per_user.mean for one in each],
            "interval": interval(accuracy),
            "accuracy_per_pair": float(np.mean([one.accuracy_per_pair for one in each])),
            "nll": float(np.mean([one.nll for one in each])),
            "ece": float(np.mean([one.ece for one in each])),
            "users": sum(one.users for one in each),
        }
        if baseline is not None:
            other = np.concatenate([e.users(cell.key)["accuracy"].to_numpy() for e in baseline])
            cells[cell.key]["difference"] = {
                "mean": float((accuracy - other).mean()),
                "interval": interval(accuracy - other),
            }
    return cells


def interval(value_U: np.ndarray) -> list[float]:
    """Return the 95 % bootstrap interval of a mean over users."""
    estimate = bootstrap(value_U)
    return [estimate.low, estimate.high]


def table(result: Mapping[str, Any]) -> str:
    """Return accuracies by method and cell as text."""
    lines: list[str] = []
    keys = list(next(iter(result["cells"].values())))
    lines.append("accuracy per user".ljust(20) + "".join(f"{key:>17}" for key in keys))
    for name, cells in result["cells"].items():
        lines.append(name.ljust(20) + "".join(f"{cells[key]['accuracy']:17.4f}" for key in keys))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
