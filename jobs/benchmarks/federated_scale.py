"""How many clients a second federated training takes, beside the same local steps in one plain loop.

    python jobs/benchmarks/federated_scale.py [--quick --out FOLDER --users 1000 100000 --turns 3]

Planted clients, each with 45 comparisons; 100 of them are in a round and take 10 steps. Ours runs on a pool
of Ray actors, one a core, and writes every closed round and every client's own rows to disk. The plain loop
calls the same local steps for the same clients one after the other in one process, and keeps all it has in
memory: no actors, no messages, no disk. It is given one thread and all of them; the better counts. So the
ratio is that of as many processes as there are cores to one.
The two take turns. Memory is that of all processes of ours together, shared pages counted once; its growth is
the median of a run's second half over that of the quarter before. A run is 8 rounds, so at most 800 clients
take part in one.

Writes `results/federated_scale.json`. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from recording import options, parse, python, save, spread, surroundings, tell, told

from raypref.config import PlantedConfig, RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Tables

FILE = "federated_scale.json"
ROUNDS = 8
FIRST = 2
"""Rounds that warm up and are not counted."""
SAMPLE_S = 0.2
REACH = 0.7


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    parser = options(__doc__, FILE)
    parser.add_argument("--users", type=int, nargs="+", help="clients; default 1,000 and 100,000")
    parser.add_argument("--turns", type=int, default=3, help="of ours and the plain loop")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    given = parse(parser, arguments)
    if given.ours:
        tell(ours(given.ours))
        return 0
    if given.plain:
        torch.set_num_threads(given.threads)
        tell(plain(given.plain))
        return 0
    users = given.users or ((60, 120) if given.quick else (1_000, 100_000))
    turns = 1 if given.quick else given.turns
    sizes = [measured(count, given.quick, turns) for count in users]
    found = {
        "command": f"python jobs/benchmarks/federated_scale.py --turns {turns}",
        **surroundings("ray", "torch"),
        "config": {"clients_per_round": 100, "local_steps": 10, "rounds": ROUNDS, "workers": os.cpu_count()},
        "reach": REACH,
        "sizes": sizes,
    }
    save(given.out / FILE, found)
    for size in sizes:
        print(
            f"{size['users']:,} clients: {size['clients_per_s']['median']:.1f} clients/s, "
            f"{size['ratio']['median']:.2f} of the plain loop, peak {size['peak_mb']['median']:,.0f} MB"
        )
    return 0


def measured(users: int, quick: bool, turns: int) -> dict[str, Any]:
    """Return the figures of a population of one size."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["RAYPREF_CACHE"] = str(home / "cache")
        planted = PlantedConfig(
            dim=64, train_prompts=1500, test_prompts=50, seen_users=users, unseen_users=1, test_comparisons=1
        )
        write_planted(planted, home / "items", home / "tables")
        rates: list[float] = []
        others: dict[str, list[float]] = {"one_thread": [], "all_threads": []}
        peaks: list[float] = []
        growth: list[float] = []
        for turn in range(turns):
            run = home / f"run-{turn}.json"
            run.write_text(configured(home, home / f"run-{turn}", quick).model_dump_json())
            found = told(python(__file__, "--ours", run))
            rates.append(found["clients_per_s"])
            peaks.append(found["peak_mb"])
            growth.append(found["growth"])
            for name, threads in (("one_thread", 1), ("all_threads", os.cpu_count() or 1)):
                other = told(python(__file__, "--plain", run, "--threads", threads))
                others[name].append(other["clients_per_s"])
        best = max(others, key=lambda name: float(np.median(others[name])))
        return {
            "users": users,
            "clients_per_s": spread(rates),
            "plain_clients_per_s": {name: spread(values) for name, values in others.items()},
            "plain": best,
            "ratio": spread([one / two for one, two in zip(rates, others[best], strict=True)]),
            "peak_mb": spread(peaks),
            "growth_over_rounds": spread(growth),
        }


def configured(home: Path, folder: Path, quick: bool) -> RunConfig:
    """Return the run that both programs read."""
    raw = {
        "dir": str(folder),
        "items": str(home / "items"),
        "tables": str(home / "tables"),
        "method": {"type": "fedvpa", "orthogonal": 1e-2},
        "train": {"mode": "federated", "workers": os.cpu_count()},
        "federated": {"rounds": ROUNDS, "clients": 6 if quick else 100, "local_steps": 10},
    }
    return parse_config(raw, [], "benchmark")


def _opened(path: Path) -> tuple[RunConfig, ItemTable, Tables]:
    config = RunConfig.model_validate_json(path.read_text())
    return config, ItemTable.open(config.items_dir), Tables.open(config.tables_dir)


def ours(path: Path) -> dict[str, float]:
    """Run the rounds on the pool and return clients a second and memory."""
    from raypref.cluster import connected
    from raypref.federated.pool import Pool
    from raypref.federated.run import closed, started

    config, items, tables = _opened(path)
    memory: list[float] = []
    done = threading.Event()
    seconds: list[float] = []
    with connected(config.train.most_workers), closing(Pool(config, tables, config.dir / "clients")) as pool:
        watch = threading.Thread(target=_watch, args=(memory, done))
        watch.start()
        server = started(config, items, pool)
        began = time.perf_counter()
        for _ in closed(server, pool, config, config.dir):
            now = time.perf_counter()
            seconds.append(now - began)
            began = now
        done.set()
        watch.join()
    half = len(memory) // 2
    return {
        "clients_per_s": config.federated.clients / float(np.median(seconds[FIRST:])),
        "peak_mb": max(memory) / 2**20,
        "growth": float(np.median(memory[half:]) / np.median(memory[half // 2 : half])),
    }


def _watch(memory: list[float], done: threading.Event) -> None:
    """Note the proportional set size of this process, and of all that it started."""
    this = psutil.Process()
    while not done.wait(SAMPLE_S):
        total = 0
        for process in [this, *this.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        memory.append(total)


def plain(path: Path) -> dict[str, float]:
    """Take the same local steps in a loop, averaging as it goes, and return clients a second."""
    from raypref.checkpoint import build
    from raypref.federated.local import local_round
    from raypref.federated.messages import Broadcast, PeerList
    from raypref.federated.server import Server
    from raypref.train.session import SCALE_SAMPLE
    from raypref.train.shards import own_rows, shared_parameters, shared_state
    from raypref.types import Dims

    config, items, tables = _opened(path)
    options = config.federated
    learn = tables.comparisons("seen", ["train"])
    model, central = (build(config.method, Dims(items.width, 1)) for _ in range(2))
    central.fit_scale(torch.from_numpy(items.sample(SCALE_SAMPLE, 0)))
    sampler = Server(central, learn.user_U, options, config.train.seed)
    fresh = own_rows(model)
    kept: dict[int, Any] = {}
    vectors: dict[int, torch.Tensor] = {}
    seconds: list[float] = []
    for number in range(options.rounds):
        sampler.round = number
        began = time.perf_counter()
        known = list(vectors)[-options.peers :]
        peers = PeerList(
            torch.tensor(known, dtype=torch.int64),
            torch.stack([vectors[client] for client in known]) if known else sampler.known.vector_CZ,
            torch.arange(len(known)) % 2,
        )
        broadcast = Broadcast(number, shared_state(central), peers)
        total = {name: torch.zeros_like(part) for name, part in shared_parameters(central).items()}
        clients = sampler.sample().tolist()
        for client in clients:
            own = learn.select(np.array([client]))
            update, kept[client] = local_round(
                model, broadcast, client, replace(own), items.gather, kept.get(client, fresh), config
            )
            for name, delta in update.delta.items():
                total[name] += delta
            assert update.vector_Z is not None
            vectors[client] = update.vector_Z
        with torch.no_grad():
            for name, part in shared_parameters(central).items():
                part += total[name] / len(clients)
        seconds.append(time.perf_counter() - began)
    return {"clients_per_s": options.clients / float(np.median(seconds[FIRST:]))}


if __name__ == "__main__":
    raise SystemExit(main())
