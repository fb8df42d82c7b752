"""Every method on every population, tuned with one budget: `python jobs/benchmarks/methods.py --data FOLDER`.

First each method's four candidates of methods.yaml are fitted to one draw of each family of populations, on a
seed that is reported nowhere, and the one with the best mean accuracy over the shots of unseen users is kept.
Then that one is fitted on every seed. Killed and started again, it goes on: see trials.py. Writes one file a
population, and a page of all of them, results/methods.html; `table.py` prints the table of docs/results.md.

results/methods_POPULATION.json:

    population, size, setting (warm | cold), shots [0, 1, …], seeds [0, 1, 2]
    tuning      population, seed: where the candidates were compared
    budget      {steps, visits}: what every recipe is cut to, null for none; variants keep their own
    machine     processor, cores, processes;  versions  {library: version}
    methods     by label, in the order of methods.yaml, variants last:
      variant       true for a method as released, which is not tuned
      config        what was fitted, sparse;  method  the resolved configuration
      candidates    [{change, score (null where it failed), error}], chosen: its number; empty and 0 untuned
      failed        [{seed, error}]: seeds that are missing below; where all failed, nothing stands below
      parameters    {shared, per_user}: trained numbers, per_user for every seen user;  seen_users [a seed]
      fit_seconds   {median, all}: one thread, beside --processes − 1 others;  steps [a seed]
      adaptation    [{shots, users, batch, infer_seconds, encode_seconds}]: of seed 0; `infer_seconds` for all
                    `users`, scaled up from `batch` where that is smaller; `encode_seconds` of one comparison
      cells         by name, such as unseen/cold/4 or seen/cold/all:
        accuracy, by_seed [], interval [low, high] over the users of all seeds, accuracy_per_pair, nll, ece,
        users         of all seeds
        difference    {mean, interval} to bt, paired by user; null without bt
        uncertainty   {source (margin_std | doubt), by_user: [{users, uncertainty, accuracy}]}, certain first
        latent_gain   accuracy with the own less with another user's vector, where most is known; else null
        collapse      {active_units, units, kl, mutual_information} there, of methods with posteriors
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import populations
import yaml
from page import write_page
from record import Record, Trial
from summary import failures, score, summarise, table
from trials import configured, run_trials

from raypref import files
from raypref.checkpoint import library_versions
from raypref.errors import InputError, RayprefError

HERE = Path(__file__).parent
BASELINE = "bt"
Budget = Mapping[str, int]
"""Steps, and visits of users in all of them."""

TUNING_SEED = 100
"""Names worlds and splits that no reported figure comes from."""


def main() -> int:
    """Tune, fit, and write what was found."""
    options = _options()
    plan = yaml.safe_load((HERE / "methods.yaml").read_text())
    try:
        results = run(options, plan)
    except RayprefError as error:
        print(f"methods: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("methods: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    for name, result in results.items():
        files.write_text(options.output / f"methods_{name}.json", json.dumps(result, indent=1) + "\n")
        print(table(result))
    write_page(results, options.output / "methods.html")
    failed = [f"{label} on {name}" for name, result in results.items() for label in failures(result)]
    if failed:
        print(f"methods: failed: {', '.join(failed)}; the results say why.", file=sys.stderr)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("quick", "default", "full"), default="default")
    parser.add_argument(
        "--quick",
        dest="size",
        action="store_const",
        const="quick",
        help="two small populations, one seed, untuned",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2; quick: 0")
    parser.add_argument("--methods", nargs="+", metavar="LABEL", help="default: all of methods.yaml")
    parser.add_argument(
        "--populations", nargs="+", choices=populations.NAMES, metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=populations.data_folder(),
        help=f"folder of real preferences, default ${populations.DATA_VARIABLE}; without it they are skipped",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="what can be made again")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="trials at a time")
    parser.add_argument(
        "-o", "--output", type=Path, help="default: results/ beside this file; quick: WORK/results"
    )
    options = parser.parse_args()
    options.seeds = options.seeds or ([0] if options.size == "quick" else [0, 1, 2])
    options.output = options.output or (options.work if options.size == "quick" else HERE) / "results"
    if TUNING_SEED in options.seeds:
        parser.error(f"seed {TUNING_SEED} is the tuning seed")
    return options


def run(options: argparse.Namespace, plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the result of each population that can be had, by name."""
    names = [name for name in _populations(options, plan) if _available(name, options.data)]
    if not names:
        raise InputError("no population is left.")
    methods: dict[str, Any] = _chosen(plan["methods"], options)
    variants: dict[str, Any] = (
        {} if options.size == "quick" else _chosen(plan["variants"]["methods"], options)
    )
    if unknown := set(options.methods or ()) - {*plan["methods"], *plan["variants"]["methods"]}:
        raise InputError(f"no method {', '.join(sorted(unknown))} in methods.yaml.")
    budget: Budget | None = plan["budget"][options.size]
    tuned = _tune(options, names, methods, budget)
    wanted: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        wanted[name] = {label: tuned[populations.family(name), label]["config"] for label in methods}
        if name in plan["variants"]["populations"]:
            wanted[name] |= variants
    trials = [
        Trial(name, seed, label, config, options.size)
        for seed in options.seeds
        for name, labels in wanted.items()
        for label, config in labels.items()
    ]
    records = _run(options, trials, "fit")
    results: dict[str, dict[str, Any]] = {}
    for name, labels in wanted.items():
        own = {
            label: [r for r in records if (r.trial.population, r.trial.label) == (name, label)]
            for label in labels
        }
        about = {
            label: {
                "variant": label in variants,
                **tuned.get((populations.family(name), label), {"config": config}),
            }
            for label, config in labels.items()
        }
        results[name] = _result(options, name, own, about, budget)
    return results


def _populations(options: argparse.Namespace, plan: Mapping[str, Any]) -> Sequence[str]:
    default = plan["quick"] if options.size == "quick" else populations.NAMES
    return options.populations or default


def _available(name: str, data: Path | None) -> bool:
    why = populations.missing(name, data)
    if why:
        print(f"methods: {name} is skipped: {why}", file=sys.stderr)
    return why is None


def _chosen(methods: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    return {
        label: value for label, value in methods.items() if not options.methods or label in options.methods
    }


def _tune(
    options: argparse.Namespace, names: Sequence[str], methods: Mapping[str, Any], budget: Budget | None
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return for each family and method the chosen configuration and all candidates with their scores."""
    families = list(dict.fromkeys(map(populations.family, names)))
    candidates = {
        label: [capped(merged(method["base"], change), label, budget) for change in method["candidates"]]
        for label, method in methods.items()
    }
    if options.size == "quick":
        first = {label: configs[0] for label, configs in candidates.items()}
        return {(name, label): {"config": config} for name in families for label, config in first.items()}
    keys = [(name, label, n) for name in families for label in methods for n in range(len(candidates[label]))]
    trials = [
        Trial(name, TUNING_SEED, f"{label} candidate {n}", candidates[label][n], options.size)
        for name, label, n in keys
    ]
    found = dict(zip(keys, _run(options, trials, "tune"), strict=True))
    tuned: dict[tuple[str, str], dict[str, Any]] = {}
    for name in families:
        for label, method in methods.items():
            records = [found[name, label, n] for n in range(len(candidates[label]))]
            scores = [score(record) for record in records]
            best = int(np.argmax([-1.0 if value is None else value for value in scores]))
            tuned[name, label] = {
                "config": candidates[label][best],
                "chosen": best,
                "candidates": [
                    {"change": change, "score": value, "error": record.error}
                    for change, value, record in zip(method["candidates"], scores, records, strict=True)
                ],
            }
    return tuned


def _run(options: argparse.Namespace, trials: Sequence[Trial], stage: str) -> list[Record]:
    print(f"methods: {stage}: {len(trials)} trials", file=sys.stderr)
    return run_trials(trials, options.work, options.processes, data=options.data)


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with a change of it, which may be a part of its recipe."""
    config = {**base, **change}
    if "recipe" in base and "recipe" in change:
        config["recipe"] = {**base["recipe"], **change["recipe"]}
    return config


def capped(config: dict[str, Any], label: str, budget: Budget | None) -> dict[str, Any]:
    """Return a configuration whose recipe keeps to the budget; what cannot be read stays as it is."""
    try:
        recipe = configured(Trial("", 0, label, config)).method.recipe
    except RayprefError:
        return config
    if budget is None:
        return config
    steps = min(recipe.steps, budget["steps"])
    cut = {"steps": steps, "users_per_step": min(recipe.users_per_step, budget["visits"] // steps)}
    cut = {name: value for name, value in cut.items() if value != getattr(recipe, name)}
    return merged({"recipe": {}, **config}, {"recipe": cut}) if cut else config


def _result(
    options: argparse.Namespace,
    name: str,
    records: Mapping[str, Sequence[Record]],
    about: Mapping[str, Mapping[str, Any]],
    budget: Budget | None,
) -> dict[str, Any]:
    good = {label: {r.trial.seed: r for r in each if r.error is None} for label, each in records.items()}
    keys = [key.split("/") for each in good.values() for r in each.values() for key in r.cells]
    return {
        "population": name,
        "size": options.size,
        "setting": keys[0][1] if keys else None,
        "shots": sorted({int(shots) for cohort, _, shots in keys if cohort == "unseen"}),
        "seeds": options.seeds,
        "tuning": {"population": populations.family(name), "seed": TUNING_SEED},
        "budget": budget,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "processes": options.processes},
        "versions": library_versions(),
        "methods": {
            label: {
                "candidates": [],
                "chosen": 0,
                **about[label],
                "failed": [{"seed": r.trial.seed, "error": r.error} for r in records[label] if r.error],
                **summarise(seeds, good.get(BASELINE, {})),
            }
            for label, seeds in good.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
