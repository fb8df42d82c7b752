"""Federated training of two conflicting groups: FedVPA-GP, its ablations, baselines and the central bound.

    python jobs/benchmarks/federated.py --data FOLDER [--work FOLDER --processes 2 --quick --out FOLDER]
    python jobs/benchmarks/federated.py --data FOLDER --study sizes

Clients hold comparisons of one group each: planted users of two rewards, HelpSteer2's users who care for
helpfulness or for verbosity alone, and Pol.is voters, who have no groups. Unless said otherwise, 10 clients
(of 10, 5) are sampled in each of 100 rounds and take 10 steps. Accuracy is that on held-out comparisons,
averaged per user: of the clients themselves, and of unseen users after 0 to 16 comparisons. Differences are
paired by user over all seeds, with 95 % bootstrap intervals.

The privacy cases train 400 planted clients with noise: ε is that of the accountant, at δ = 1e-5.

`--study sizes` has more numbers of clients of real data, and all methods where one group is larger than the
other; it tells accuracy by seed too, and differences after any number of comparisons.

Cases are kept below `--work`; a killed study goes on. Writes `results/federated.json` and
`results/federated.html`, or `results/federated_sizes.json`.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from federated_case import POPULATIONS, Case, run
from federated_page import write_page
from populations import Population, data_folder, missing
from recording import options, parse, save, surroundings

from raypref import files
from raypref.metrics import bootstrap

VPA = {"type": "fedvpa", "orthogonal": 1e-2}
VARIANTS: dict[str, Mapping[str, Any]] = {
    "FedAvg-BT": {"type": "bt"},
    "FedBiscuit-U2": {"type": "biscuit", "selectors": 2},
    "FedVPL": {"type": "fedvpa", "prior": "normal", "orthogonal": 0.0},
    "+ orthogonal": {**VPA, "prior": "normal"},
    "+ mixture prior": {"type": "fedvpa", "orthogonal": 0.0},
    "FedVPA-GP": VPA,
}
CENTRAL = "FedVPA-GP, central"
OTHERS: dict[str, Mapping[str, Any]] = {
    "VRF": {"type": "vrf"},
    "LoRe, local posterior": {"type": "lore"},
    "LoRe, local weights": {"type": "lore", "solver": "adam"},
}
PRIVATE: dict[str, Mapping[str, Any]] = {"FedAvg-BT": {"type": "bt"}, "LoRe": {"type": "lore", "bases": 4}}
NOISES = (None, 0.5, 1.0, 2.0)
CLIP = 0.1
FEW = {"rounds": 4, "clients": 4, "local_steps": 2}
"""A rehearsal's rounds."""
REHEARSED = ("FedAvg-BT", "FedVPL", "FedVPA-GP")

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """Which cases are run, and what is said of them."""

    cases: Callable[[bool], list[Case]]
    """In full, or a rehearsal's."""
    figures: Callable[[Records], dict[str, Any]]
    file: str
    page: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not recorded yet, judge and write down."""
    parser = options(__doc__, "figures")
    parser.add_argument("--study", choices=sorted(STUDIES), default="orders", help="what to measure")
    parser.add_argument("--work", type=Path, default=Path("runs/federated"), help="folder to keep cases in")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder of real data")
    parser.add_argument("--processes", type=int, default=2, help="cases at a time")
    given = parse(parser, arguments)
    study = STUDIES[given.study]
    wanted = [
        case for case in study.cases(given.quick) if not missing(POPULATIONS[case.population], given.data)
    ]
    records = list(recorded(wanted, given.work, given.data, given.processes))
    which = "" if given.study == "orders" else f" --study {given.study}"
    found = {
        "command": f"python jobs/benchmarks/federated.py --data FOLDER{which}",
        **surroundings("torch", "dp-accounting"),
        **study.figures(records),
    }
    save(given.out / study.file, found)
    if study.page:
        write_page(given.out / study.page, found)
    for line in told(found):
        print(line)
    return 0


def in_order(records: Records) -> dict[str, Any]:
    """Return what the study of orders says."""
    return {
        "tables": tables(records),
        "orders": orders(records),
        "rounds": by_round(records),
        "means": next(
            (one["means"] for one in records if one["means"] and one["case"]["label"] == "FedVPA-GP"), {}
        ),
        "traffic": traffic(records),
        "privacy": private(records),
    }


def in_sizes(records: Records) -> dict[str, Any]:
    """Return what the study of sizes says."""
    return {
        "tables": tables(records),
        "by_seed": by_seed(records),
        "orders": orders(records, every=True),
        "rounds": by_round(records),
    }


def cases(quick: bool) -> list[Case]:
    """Return the cases of the study of orders, those that say most first."""
    if quick:
        wanted = [Case("planted", 10, label, VARIANTS[label], federated=FEW) for label in REHEARSED]
        return [*wanted, _private("FedAvg-BT", 1.0, {**FEW, "clients": 20})]
    found: list[Case] = []
    for population, clients, seeds in (
        ("planted", 50, (0, 1, 2)),
        ("planted", 10, (0, 1, 2)),
        ("helpsteer2", 50, (0, 1)),
        ("polis", 100, (0, 1)),
        ("planted", 100, (0, 1)),
    ):
        share = None if population == "polis" else 0.5
        for seed in seeds:
            found += _ladder(population, clients, seed, share)
    for share in (0.7, 0.8):
        found += [
            Case("planted", 50, label, VARIANTS[label], seed, share)
            for seed in (0, 1)
            for label in ("FedBiscuit-U2", "FedVPL", "FedVPA-GP")
        ]
    found += [Case("planted", 50, label, method) for label, method in OTHERS.items()]
    found += [
        _private(label, noise, {"rounds": 60, "clients": 40, "local_steps": 5})
        for label in PRIVATE
        for noise in NOISES
    ]
    return found


def sized(quick: bool) -> list[Case]:
    """Return the cases of the study of sizes: HelpSteer2's seed 0 has 49 clients of a group, not 50."""
    if quick:
        return [
            Case("planted", 10, label, VARIANTS[label], seed, 0.7, FEW)
            for seed in (0, 1)
            for label in REHEARSED
        ]
    found: list[Case] = []
    for share in (0.7, 0.8):
        for seed in (0, 1):
            found += _ladder("planted", 50, seed, share)
    for clients in (10, 98):
        found += _ladder("helpsteer2", clients, 0, 0.5)
    for clients in (10, 50):
        found += _ladder("polis", clients, 0, None)
    return found


STUDIES = {
    "orders": Study(cases, in_order, "federated.json", "federated.html"),
    "sizes": Study(sized, in_sizes, "federated_sizes.json"),
}


def _ladder(population: str, clients: int, seed: int, share: float | None) -> list[Case]:
    """Return the cases of all variants, and the central bound."""
    found = [Case(population, clients, label, method, seed, share) for label, method in VARIANTS.items()]
    return [*found, Case(population, clients, CENTRAL, VPA, seed, share, central=True)]


def _private(label: str, noise: float | None, federated: Mapping[str, Any]) -> Case:
    privacy = {} if noise is None else {"privacy": {"clip": CLIP, "noise": noise}}
    name = f"{label}, noise {'none' if noise is None else f'{noise:g}'}"
    return Case("planted", 400, name, PRIVATE[label], 0, None, {**federated, **privacy}, looks=4)


def recorded(
    wanted: Sequence[Case], work: Path, data: Path | None, processes: int
) -> Iterator[dict[str, Any]]:
    """Yield the records of all cases, running those that are not on disk."""
    todo = [case for case in wanted if not _path(case, work).is_file()]
    for case in {case.population: case for case in todo}.values():
        Population(POPULATIONS[case.population], case.seed, "default", {}, work, data).embed()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run, case, work, data): case for case in todo}
        for number, future in enumerate(as_completed(waiting), start=1):
            case, record = waiting[future], future.result()
            files.write_text(_path(case, work), json.dumps(record) + "\n")
            print(f"[{number}/{len(todo)}] {case.name}: {record['cpu_s']:.0f} s", flush=True)
    for case in wanted:
        yield json.loads(_path(case, work).read_text())


def _path(case: Case, work: Path) -> Path:
    return work / "cases" / f"{case.name}.json"


def _tables(records: Records) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Return the records by setting, then label; without those with noise."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        case = record["case"]
        if not record["looks"]:
            share = "" if case["share"] in (None, 0.5) else f", {case['share']:.0%} in one group"
            found[f"{case['population']}, {case['clients']} clients{share}"][case["label"]].append(record)
    return found


def tables(records: Records) -> dict[str, Any]:
    """Return accuracy by setting and label: of the clients, and of unseen users by shots."""
    return {
        setting: {
            label: {
                cell: _estimate(np.concatenate([one["users"][cell]["accuracy"] for one in of]))
                for cell in of[0]["users"]
            }
            | {"seeds": [one["case"]["seed"] for one in of], "cpu_s": [one["cpu_s"] for one in of]}
            for label, of in by_label.items()
        }
        for setting, by_label in _tables(records).items()
    }


def by_seed(records: Records) -> dict[str, Any]:
    """Return accuracy by setting, label and cell, a number a seed."""
    return {
        setting: {
            label: {
                "seeds": [one["case"]["seed"] for one in of],
                **{
                    cell: [float(np.mean(one["users"][cell]["accuracy"])) for one in of]
                    for cell in of[0]["users"]
                },
            }
            for label, of in by_label.items()
        }
        for setting, by_label in _tables(records).items()
    }


LADDER = (
    ("FedVPL", "FedAvg-BT"),
    ("FedVPL", "FedBiscuit-U2"),
    ("+ orthogonal", "FedVPL"),
    ("+ mixture prior", "FedVPL"),
    ("FedVPA-GP", "+ orthogonal"),
    ("FedVPA-GP", "+ mixture prior"),
    ("FedVPA-GP", "FedVPL"),
    ("FedVPA-GP", "FedAvg-BT"),
    ("FedVPA-GP", "FedBiscuit-U2"),
    (CENTRAL, "FedVPA-GP"),
)


def orders(records: Records, every: bool = False) -> dict[str, Any]:
    """Return each lead among clients, and among unseen users at 16 shots or at every number of shots."""
    found: dict[str, Any] = {}
    for setting, by_label in _tables(records).items():
        found[setting] = [
            {"ahead": own, "of": other, "cell": cell, **_lead(by_label[own], by_label[other], cell)}
            for own, other in LADDER
            if own in by_label and other in by_label
            for cell in by_label[own][0]["users"]
            if every or cell.startswith("seen") or cell.endswith("/16")
        ]
    return found


def _lead(own: Records, other: Records, cell: str) -> dict[str, Any]:
    differences: list[np.ndarray] = []
    for one, two in zip(own, other, strict=True):
        assert one["users"][cell]["user"] == two["users"][cell]["user"]
        differences.append(np.subtract(one["users"][cell]["accuracy"], two["users"][cell]["accuracy"]))
    return _estimate(np.concatenate(differences))


def _estimate(value_U: np.ndarray) -> dict[str, Any]:
    found = bootstrap(value_U)
    return {"mean": found.mean, "interval": [found.low, found.high]}


def by_round(records: Records) -> dict[str, Any]:
    """Return the adjusted Rand index of the server's groups after each round, by setting and label."""
    found: dict[str, Any] = defaultdict(dict)
    for setting, by_label in _tables(records).items():
        for label, of in by_label.items():
            curves = [[one.get("adjusted_rand") for one in record["rounds"]] for record in of]
            if of[0]["case"]["share"] is not None and any(value is not None for value in curves[0]):
                found[setting][label] = curves
    return found


def traffic(records: Records) -> dict[str, Any]:
    """Return the bytes of a client and round on the wire, by label: the last round of 50 planted clients."""
    found: dict[str, Any] = {}
    for record in records:
        case = record["case"]
        if (case["population"], case["clients"]) == ("planted", 50) and record["rounds"]:
            last = record["rounds"][-1]
            found[case["label"]] = {
                "up": last["bytes_up"] / last["clients"],
                "down": last["bytes_down"] / last["clients"],
                "user_vector": last["bytes_vectors"] / last["clients"],
            }
    return found


def private(records: Records) -> dict[str, Any]:
    """Return ε and accuracy on the way, by label; ε is null where there is no noise."""
    return {
        record["case"]["label"]: [
            look | {"epsilon": look["epsilon"] if math.isfinite(look["epsilon"]) else None}
            for look in record["looks"]
        ]
        for record in records
        if record["looks"]
    }


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures as lines."""
    for setting, by_label in found["tables"].items():
        yield setting
        for label, cells in by_label.items():
            means = (f"{cell} {each['mean']:.3f}" for cell, each in cells.items() if "/" in cell)
            yield f"  {label}: {', '.join(means)}"
    for label, looks in found.get("privacy", {}).items():
        last = looks[-1]
        accuracy = next(value for cell, value in last["accuracy"].items() if cell.endswith("/16"))
        yield f"{label}: ε {last['epsilon']}, unseen at 16 shots {accuracy:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
