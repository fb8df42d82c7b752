"""What a sweep of small trials costs, beside the same fits in a plain loop.

    python jobs/benchmarks/sweep.py [--quick --out FOLDER]

A planted population is written once; then two programs take turns on it, each a process of its own from its
start to its end, imports and Ray's start among it: `raypref sweep`, one trial at a time on one CPU, and a
loop over the same settings in one process without Ray, which opens the data once and measures unseen users
as a trial does. Both must find the same accuracies. Then the sweep runs once with early stopping. The limit
beside the figure is the time that the trials themselves took inside the sweep's worker.

Writes `results/sweep.json`. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recording import options, parse, python, save, spread, surroundings, tell, told

FILE = "sweep.json"
REACH = 1.3
RUNGS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    parser = options(__doc__, FILE)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    given = parse(parser, arguments)
    if given.plain:
        tell(plain(json.loads(given.plain.read_text())))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    rounds = 1 if given.quick else 3
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run = described(home, quick=given.quick)
        _write(home / "run.json", run)
        python("-m", "raypref", "plant", "-c", home / "run.json")
        for turn in range(rounds):
            turns.append(_turn(home, run, turn))
            print(json.dumps(turns[-1]), flush=True)
        stopping = _stopping(home, run)
    result = {
        "command": "python jobs/benchmarks/sweep.py",
        **surroundings("ray", "torch"),
        "config": {**{name: part for name, part in run.items() if name != "dir"}, "rounds": rounds},
        "limit": "trials_s: what the trials took in the sweep's worker, without start-up and without Tune",
        **{name: spread([turn[name] for turn in turns]) for name in turns[0]},
        **stopping,
        "ratio": spread([turn["sweep_s"] / turn["plain_s"] for turn in turns]),
        "reach": REACH,
    }
    save(given.out / FILE, result)
    print(json.dumps({"ratio": result["ratio"], "reach": REACH}, indent=1))
    return 0


def described(folder: Path, quick: bool) -> dict[str, Any]:
    """Return the run: LoRe on a small planted population, 32 draws of three settings."""
    sizes = {"train_prompts": 200, "test_prompts": 50, "seen_users": 100, "unseen_users": 50, "dim": 64}
    return {
        "dir": str(folder / "run"),
        "planted": sizes if quick else {"train_prompts": 2000, "seen_users": 500, "unseen_users": 500},
        "method": {"type": "lore", **({"recipe": {"steps": 50}} if quick else {})},
        "sweep": {
            "space": {
                "method.bases": [4, 8, 12],
                "method.recipe.lr": {"low": 0.003, "high": 0.03, "log": True},
                "method.basis_l2": {"low": 0.001, "high": 0.1, "log": True},
            },
            "trials": 8 if quick else 32,
            "rungs": 0,
            "max_concurrent_trials": 1,
        },
    }


def plain(run: dict[str, Any]) -> list[float]:
    """Fit every setting in this process, one after another, and return the accuracies."""
    import torch

    from raypref.config_file import parse_config
    from raypref.tune.sampling import sampler
    from raypref.tune.space import configured, parameters
    from raypref.tune.trial import looks

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    config = parse_config(dict(run), [], "run")
    proposer = sampler(config.sweep, parameters(run, config, "run"), [])
    found: list[float] = []
    for number in range(proposer.trials):
        *_, last = looks(configured(run, proposer.propose(number), f"trial {number}"), config.sweep)
        found.append(last.accuracy)
    return found


def _turn(home: Path, run: dict[str, Any], turn: int) -> dict[str, float]:
    """Return the seconds of each program, once."""
    start = time.perf_counter()
    accuracies = told(python(__file__, "--plain", home / "run.json"))
    plain_s = time.perf_counter() - start
    sweep_s, records = _sweep(home, run, f"sweep-{turn}", 0)
    if [record["looks"][-1]["accuracy"] for record in records] != accuracies:
        raise RuntimeError("the sweep and the loop found different accuracies")
    return {
        "plain_s": plain_s,
        "sweep_s": sweep_s,
        "trials_s": sum(record["seconds"] for record in records),
        "best_accuracy": max(accuracies),
    }


def _stopping(home: Path, run: dict[str, Any]) -> dict[str, float]:
    """Return what early stopping costs and finds."""
    seconds, records = _sweep(home, run, "stopping", RUNGS)
    finished = [record for record in records if record["status"] == "finished"]
    return {
        "stopping_s": seconds,
        "stopping_trials_s": sum(record["seconds"] for record in records),
        "stopping_best_accuracy": max(record["looks"][-1]["accuracy"] for record in finished),
    }


def _sweep(home: Path, run: dict[str, Any], name: str, rungs: int) -> tuple[float, list[dict[str, Any]]]:
    """Return the seconds and the records of a new sweep, by number."""
    tables = {part: str(Path(run["dir"]) / part) for part in ("items", "tables")}
    own = {**run, **tables, "dir": str(home / name), "sweep": {**run["sweep"], "rungs": rungs}}
    _write(home / f"{name}.json", own)
    start = time.perf_counter()
    python("-m", "raypref", "sweep", "-c", home / f"{name}.json")
    seconds = time.perf_counter() - start
    (ledger,) = (home / name).glob("sweep/*/trials.jsonl")
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    return seconds, sorted(records, key=lambda record: record["number"])


def _write(path: Path, run: dict[str, Any]) -> None:
    # JSON is YAML too.
    path.write_text(json.dumps(run))


if __name__ == "__main__":
    sys.exit(main())
