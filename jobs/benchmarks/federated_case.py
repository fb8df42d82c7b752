"""One federated training among few clients, and what is kept of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federated_groups import adjusted_rand
from papers.prototypes import groups
from populations import Population

from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons, Tables
from raypref.evaluate.protocol import evaluate
from raypref.federated.host import Host, InProcess
from raypref.federated.rounds import Round, federate
from raypref.federated.run import started
from raypref.federated.server import Server
from raypref.methods.base import RewardModel
from raypref.schema import Cohort, Split
from raypref.train.session import fit

PLANTED = {"rewards": 2, "shared": 0.0, "alpha": 0.02}
POPULATIONS = {"planted": "planted-noisy", "helpsteer2": "helpsteer2", "polis": "polis-warm"}
SHOTS = (0, 1, 4, 16)
SHOWN = (1, 5, 20, 100)
"""Rounds after which the clients' means are kept."""
SECRET = bytes(32)
"""Of the noise: a study's figures come out again."""


@dataclass(frozen=True)
class Case:
    """Who trains together, and how."""

    population: str
    clients: int
    label: str
    method: Mapping[str, Any]
    seed: int = 0
    share: float | None = 0.5
    """Of the clients that are of the first group; None where there are no groups."""
    federated: Mapping[str, Any] = field(default_factory=dict)
    central: bool = False
    looks: int = 1
    """Evaluations on the way, evenly spread."""

    @property
    def name(self) -> str:
        """Of its file."""
        share = "" if self.share is None else f"-{self.share:g}"
        return f"{self.population}-{self.clients}{share}-{self.seed}-{self.label.replace(' ', '_')}"


class Chosen(Tables):
    """Tables whose seen users are a few alone."""

    def __init__(self, whole: Tables, clients_N: np.ndarray) -> None:
        """Leave all other seen users out."""
        super().__init__(whole.directory, whole.metadata)
        self.whole = whole
        self.clients_N = clients_N

    def comparisons(self, cohort: Cohort | None, splits: Sequence[Split], buckets: Any = None) -> Comparisons:
        """Return the comparisons of unseen users, or of the chosen ones."""
        found = super().comparisons(cohort, splits, buckets)
        unseen_U = self.rows[found.user_U] < 0
        return found.select(found.user_U[unseen_U | np.isin(found.user_U, self.clients_N)])


def run(case: Case, work: Path, data: Path | None) -> dict[str, Any]:
    """Return the record of a case, which no other case changes."""
    torch.set_num_threads(1)
    planted = PLANTED if case.population == "planted" else {}
    prepared = Population(POPULATIONS[case.population], case.seed, "default", planted, work, data).prepare()
    items, whole = ItemTable.open(prepared.items), Tables.open(prepared.tables)
    group_U = groups(whole) if case.share is not None else np.zeros(whole.users.num_rows, np.int64)
    tables = Chosen(whole, chosen(whole, group_U, case))
    config = configured(case)
    began = time.process_time()
    record: dict[str, Any] = {"case": asdict(case), "rounds": [], "means": {}, "looks": []}
    if case.central:
        model = fit(config, items, tables).model
    else:
        model = federated(case, config, items, tables, group_U, record)
    record["cpu_s"] = time.process_time() - began
    record["users"] = judged(model, config, items, tables, group_U)
    return record


def chosen(tables: Tables, group_U: np.ndarray, case: Case) -> np.ndarray:
    """Return the numbers of the clients: of two groups by their shares, else any."""
    seen_U = np.flatnonzero(tables.rows >= 0)
    order_U = np.random.default_rng(case.seed).permutation(seen_U)
    if case.share is None:
        return np.sort(order_U[: case.clients])
    first = round(case.share * case.clients)
    parts = [
        order_U[group_U[order_U] == group][:count]
        for group, count in enumerate((first, case.clients - first))
    ]
    found = np.sort(np.concatenate(parts))
    if len(found) < case.clients:
        raise ValueError(f"{case.name}: the population has too few users of a group")
    return found


def configured(case: Case) -> RunConfig:
    """Return the run of a case."""
    clients = 5 if case.clients == 10 else 10
    raw = {
        "method": dict(case.method),
        "train": {"mode": "central" if case.central else "federated", "seed": case.seed, "patience": 0},
        "federated": {"rounds": 100, "clients": clients, "local_steps": 10, **case.federated},
        "evaluate": {"shots": SHOTS, "seeds": (0,), "bootstrap": 20},
    }
    return parse_config(raw, [], case.name)


def federated(
    case: Case,
    config: RunConfig,
    items: ItemTable,
    tables: Chosen,
    group_U: np.ndarray,
    record: dict[str, Any],
) -> RewardModel:
    """Run the rounds and keep what they show."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        transport = InProcess(Host(config, items, tables, Path(folder), range(tables.metadata.buckets)))
        server = started(config, items, transport, SECRET)
        every = config.federated.rounds // case.looks
        for done in federate(server, transport, config.federated, case.name):
            record["rounds"].append(_said(done, server, group_U))
            if done.round in SHOWN and server.model.peers:
                record["means"][str(done.round)] = _means(server, group_U)
            if case.looks > 1 and done.round % every == 0:
                users = judged(server.model, config, items, tables, group_U)
                accuracy = {cell: float(np.mean(found["accuracy"])) for cell, found in users.items()}
                record["looks"].append({"round": done.round, "epsilon": done.epsilon, "accuracy": accuracy})
    return server.model


def _memory() -> str | None:
    """Return a folder that is no disk, where there is one: a study's clients need not outlive it."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _said(done: Round, server: Server, group_U: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {
        "clients": len(done.found.clients),
        "bytes_up": done.found.traffic.up,
        "bytes_down": done.found.traffic.down,
        "bytes_vectors": done.found.traffic.vectors,
    }
    known_C, group_C = server.known.client_C.numpy(), server.known.group_C.numpy()
    if len(known_C) and (group_C >= 0).all():
        found["adjusted_rand"] = adjusted_rand(group_C, group_U[known_C])
    return found


def _means(server: Server, group_U: np.ndarray) -> dict[str, Any]:
    """Return where the clients are in the plane in which they differ most."""
    landscape = server.model.landscape(server.known.vector_CZ)
    assert landscape is not None
    mean_CL = landscape.mean_BL - landscape.mean_BL.mean(0)
    plane_2L = torch.linalg.svd(mean_CL, full_matrices=False).Vh[:2]
    at_C2 = (mean_CL @ plane_2L.mT).tolist()
    return {"at": at_C2, "group": group_U[server.known.client_C.numpy()].tolist()}


def judged(
    model: RewardModel, config: RunConfig, items: ItemTable, tables: Chosen, group_U: np.ndarray
) -> dict[str, Any]:
    """Return each user's accuracy in each cell, of the clients and of unseen users of the two groups."""
    found = evaluate(model, items, tables.whole, config.evaluate)
    cells: dict[str, Any] = {}
    for cell in found.cells:
        part = found.users(cell.key)
        user_U = part["user"].to_numpy()
        kept_U = np.isin(user_U, tables.clients_N) if cell.cohort == "seen" else group_U[user_U] < 2
        accuracy_U = part["accuracy"].to_numpy()[kept_U]
        cells[cell.key] = {
            "user": user_U[kept_U].tolist(),
            "accuracy": [round(value, 4) for value in accuracy_U.tolist()],
        }
    return cells
