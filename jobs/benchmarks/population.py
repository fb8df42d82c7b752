"""What it costs to adapt and score a whole population, beside the same arithmetic without Ray.

    python jobs/benchmarks/population.py [--quick] [--out FOLDER] [--work FOLDER] [--method TYPE]

For each size a planted population is written as tables, then programs take turns on it: `raypref adapt` and
`raypref score` (64 candidates for everybody), and `population_plain.py`, one NumPy and PyTorch process that
reads and writes the same, with PyTorch on all cores and on one; the faster one is the reference. Each turn
is a process of its own, so that peak memory is its own; a figure is the median of the turns. Start-up (Ray,
processes, imports, the bundle) is stated apart. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from recording import options, parse, save, spread, surroundings, tell, told

FILE = "population.json"
COMMAND = "python jobs/benchmarks/population.py"
CANDIDATES = 64
SHOTS = 16
WIDTH = 384
SAMPLE_S = 0.2
REACH = {"ratio": 0.7, "flat": 0.2}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    users: tuple[int, ...]
    turns: int
    train_prompts: int
    users_per_part: int


FULL = Plan(users=(1_000, 10_000, 100_000, 1_000_000), turns=3, train_prompts=9402, users_per_part=4096)
QUICK = Plan(users=(300, 600), turns=1, train_prompts=60, users_per_part=100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    parser = options(__doc__, FILE)
    parser.add_argument("--work", type=Path, help="where data is written; default: a temporary folder")
    parser.add_argument("--method", default="vrf", help="type of the method that adapts; default vrf")
    parser.add_argument("--users", type=int, nargs="+", help="sizes; default 10^3 to 10^6")
    parser.add_argument("--turns", type=int, help="of both programs at each size")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parse(parser, arguments)
    if given.run is not None:
        return _run(given.run)
    plan = QUICK if given.quick else FULL
    users = tuple(given.users or plan.users)
    plan = Plan(users, given.turns or plan.turns, plan.train_prompts, plan.users_per_part)
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        sizes = [_measure(plan, size, given.method, Path(folder) / str(size)) for size in plan.users]
    found = {"command": COMMAND, **_surroundings(plan, given.method), "sizes": sizes, "reach": _reach(sizes)}
    file = given.out / FILE
    save(file, found)
    print(json.dumps(found["reach"], indent=1))
    print(f"written to {file}")
    return 0


def _surroundings(plan: Plan, method: str) -> dict[str, Any]:
    return {
        **surroundings("ray", "torch", "numpy", "pyarrow"),
        "config": asdict(plan)
        | {
            "method": method,
            "width": WIDTH,
            "shots": SHOTS,
            "candidates": CANDIDATES,
            "workers": "one a core",
        },
    }


def _measure(plan: Plan, users: int, method: str, folder: Path) -> dict[str, Any]:
    """Return both programs' figures for a population of one size."""
    from population_limits import limits

    config = _prepare(plan, users, method, folder)
    plain = Path(__file__).with_name("population_plain.py")
    programs = {
        "raypref": [str(Path(__file__)), "--run", str(config)],
        "plain": [str(plain), str(folder), str(folder / "plain"), str(os.cpu_count() or 1)],
        "plain_one_thread": [str(plain), str(folder), str(folder / "plain"), "1"],
    }
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(plan.turns):
        for name, command in programs.items():
            for output in ("users", "scores") if name == "raypref" else ("plain",):
                shutil.rmtree(folder / output, ignore_errors=True)
            turns[name].append(_turn(command, folder))
            print(f"{users} users, {name}: {turns[name][-1]}", file=sys.stderr)
    found = {name: {key: spread([one[key] for one in own]) for key in own[0]} for name, own in turns.items()}
    reference = min(("plain", "plain_one_thread"), key=lambda name: found[name]["work_s"]["median"])
    pairs = list(zip(turns["raypref"], turns[reference], strict=True))
    _require_agreement(folder)
    limit = limits(folder)
    shutil.rmtree(folder)
    return {
        "users": users,
        **found,
        "reference": reference,
        "ratio": spread([plain["work_s"] / ours["work_s"] for ours, plain in pairs]),
        "ratio_with_start": spread([plain["wall_s"] / ours["wall_s"] for ours, plain in pairs]),
        "us_per_user": 1e6 * found["raypref"]["work_s"]["median"] / users,
        "cpu_us_per_user": 1e6 * found["raypref"]["cpu_s"]["median"] / users,
        "limit": limit,
    }


def _prepare(plan: Plan, users: int, method: str, folder: Path) -> Path:
    """Write population, bundle and candidates, and return the run's configuration."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    from raypref.config_file import parse_config
    from raypref.data.planting import write_planted

    os.environ["RAYPREF_CACHE"] = str(folder / "cache")
    raw = {
        "dir": str(folder),
        "planted": {
            "dim": WIDTH, "train_prompts": plan.train_prompts, "seen_users": 1, "unseen_users": users - 1,
            "comparisons": SHOTS, "valid": 0, "shots": SHOTS, "test_comparisons": 1,
        },
        "method": {"type": method},
        "population": {
            "candidates": str(folder / "candidates.parquet"), "users_per_part": plan.users_per_part,
        },
    }  # fmt: skip
    config = parse_config(raw, [], COMMAND)
    write_planted(config.planted, config.items_dir, config.tables_dir)
    items = 8 * plan.train_prompts
    pq.write_table(
        pa.table({"item_id": np.linspace(0, items - 1, CANDIDATES).astype(np.int64)}),
        folder / "candidates.parquet",
    )
    _save_bundle(config)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def _save_bundle(config: Any) -> None:
    """Save an untrained bundle: what its numbers are takes no time."""
    import torch

    from raypref.checkpoint import BUNDLE_USERS_SCHEMA, Bundle, BundleInfo, build, library_versions
    from raypref.data.items import ItemTable
    from raypref.types import Dims

    items = ItemTable.open(config.items_dir)
    model = build(config.method, Dims(items.width, 1024))
    model.fit_scale(torch.from_numpy(items.sample(4096, 0)))
    info = BundleInfo(
        method=config.method, dim=items.width, users=1024, embedder=items.metadata.embedder,
        data_fingerprint="0" * 64, steps=0, metrics={}, versions=library_versions(),
    )  # fmt: skip
    Bundle(model.eval(), info, BUNDLE_USERS_SCHEMA.empty_table()).save(config.bundle_dir)


def _run(path: Path) -> int:
    """Adapt and score as the two commands do, and print what they took; called in a process of its own."""
    from raypref.cluster import connected
    from raypref.config_file import load_config
    from raypref.population.adapt import adapt
    from raypref.population.score import score

    config = load_config(path, [])
    # One cluster for both: starting Ray twice would be counted twice.
    with connected():
        reports = {"adapt": adapt(config), "score": score(config)}
    found = {f"{name}_s": report.work_s for name, report in reports.items()}
    found["work_s"] = sum(report.work_s for report in reports.values())
    found["cpu_s"] = sum(report.cpu_s for report in reports.values())
    found["worker_start_s"] = sum(report.start_s for report in reports.values())
    tell(found)
    return 0


def _turn(command: list[str], folder: Path) -> dict[str, float]:
    """Run one program, and return its figures with the peak memory of its driver and its workers."""
    environment = os.environ | {"RAYPREF_CACHE": str(folder / "cache")}
    environment.pop("OMP_NUM_THREADS", None)
    begun_s = time.time()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    peaks = {"driver": 0, "workers": 0, "all": 0}
    watch = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
    watch.start()
    out, _ = process.communicate()
    wall_s = time.time() - begun_s
    watch.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}\n{out}")
    memory = {f"{name}_peak_mib": peak / 2**20 for name, peak in peaks.items() if peak}
    return {**told(out), "wall_s": wall_s, **memory}


def _watch(process: subprocess.Popen[str], peaks: dict[str, int]) -> None:
    """Keep the largest resident sizes; pages of the items table that processes share count in each."""
    family = psutil.Process(process.pid)
    while process.poll() is None:
        sizes = {"driver": 0, "workers": 0}
        try:
            sizes["driver"] = family.memory_info().rss
            for child in family.children(recursive=True):
                if "MapWorker" in " ".join(child.cmdline()):
                    sizes["workers"] += child.memory_info().rss
        except psutil.Error:
            continue
        for name, size in (*sizes.items(), ("all", sum(sizes.values()))):
            peaks[name] = max(peaks[name], size)
        threading.Event().wait(SAMPLE_S)


def _require_agreement(folder: Path) -> None:
    """Raise RuntimeError unless both programs wrote the same vectors and scores, but for rounding."""
    import pyarrow.parquet as pq

    for ours, plain, columns in (
        ("users/parts", "plain/users", ["user", "user_id", "vector"]),
        ("scores/parts", "plain/scores", ["user", "user_id", "mean"]),
    ):
        first, second = (
            pq.read_table(sorted((folder / name).glob("*.parquet"))[0], columns=columns)
            for name in (ours, plain)
        )
        users = min(len(first), len(second))
        for name in columns:
            left, right = (np.array(table[name].slice(0, users).to_pylist()) for table in (first, second))
            same = np.allclose(left, right, 1e-3, 1e-3) if left.dtype.kind == "f" else (left == right).all()
            if not same:
                raise RuntimeError(f"{ours} and {plain} differ in {name}")


def _reach(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that were promised, and whether they are reached."""
    large = [size for size in sizes if size["users"] >= 10_000] or sizes
    wall = [size["us_per_user"] for size in large]
    cpu = [size["cpu_us_per_user"] for size in large]
    memory = [size["raypref"]["all_peak_mib"]["median"] for size in large]
    ratio = large[-1]["ratio"]["median"]
    return {
        "ratio_at_the_largest": ratio,
        "wall_per_user_largest_over_smallest": max(wall) / min(wall),
        "cpu_per_user_largest_over_smallest": max(cpu) / min(cpu),
        "peak_memory_largest_over_smallest": max(memory) / min(memory),
        "reached": {
            "ratio": ratio >= REACH["ratio"],
            "wall_per_user": max(wall) <= (1 + REACH["flat"]) * min(wall),
            "cpu_per_user": max(cpu) <= (1 + REACH["flat"]) * min(cpu),
            "memory": max(memory) <= (1 + REACH["flat"]) * min(memory),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
