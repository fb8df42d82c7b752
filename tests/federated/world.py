"""A small planted population of two conflicting groups, and clients in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from raypref.config import PlantedConfig, RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Tables
from raypref.federated.host import Host, InProcess
from raypref.federated.phases import Answer, Transport
from raypref.federated.rounds import Round, federate
from raypref.federated.run import started
from raypref.federated.server import Server

SEEN, UNSEEN, BUCKETS = 24, 60, 4
PLANTED = PlantedConfig(
    dim=24,
    train_prompts=300,
    test_prompts=80,
    rewards=2,
    shared=0.0,
    alpha=0.02,
    seen_users=SEEN,
    unseen_users=UNSEEN,
    comparisons=30,
    shots=16,
    test_comparisons=30,
)
FEDVPA = {
    "type": "fedvpa",
    "latent": 8,
    "rank": 4,
    "hidden": 16,
    "features": 4,
    "peers": 16,
    "orthogonal": 0.01,
}


def plant(folder: Path) -> Path:
    write_planted(PLANTED, folder / "items", folder / "tables", buckets=BUCKETS)
    return folder


def configured(
    folder: Path, data: Path, method: Mapping[str, Any] = FEDVPA, workers: int = 1, **federated: Any
) -> RunConfig:
    raw = {
        "dir": str(folder),
        "items": str(data / "items"),
        "tables": str(data / "tables"),
        "method": dict(method),
        "train": {"mode": "federated", "workers": workers},
        "federated": {"rounds": 4, "clients": 6, "local_steps": 3, **federated},
        "evaluate": {"shots": [0, 16], "seeds": [0], "bootstrap": 20},
    }
    return parse_config(raw, [], "test")


def tables_of(config: RunConfig) -> tuple[ItemTable, Tables]:
    return ItemTable.open(config.items_dir), Tables.open(config.tables_dir)


def hosted(config: RunConfig, folder: Path) -> Host:
    items, tables = tables_of(config)
    return Host(config, items, tables, folder, range(tables.metadata.buckets))


def begun(config: RunConfig, transport: Transport) -> Server:
    return started(config, ItemTable.open(config.items_dir), transport)


def trained(config: RunConfig, folder: Path) -> tuple[Server, list[Round]]:
    """Return the server after all rounds, and what each of them did."""
    transport = InProcess(hosted(config, folder))
    server = begun(config, transport)
    return server, list(federate(server, transport, config.federated))


def weights(server: Server) -> dict[str, torch.Tensor]:
    return {name: part.clone() for name, part in server.model.state_dict().items()}


def assert_equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, part in first.items():
        assert torch.equal(part, second[name]), name


class Failing(InProcess):
    """Clients of which some fail in some rounds, or are never heard of again."""

    def __init__(self, host: Host, failing: Mapping[int, set[int]], silent: bool = False) -> None:
        super().__init__(host)
        self._failing = failing
        self._silent = silent
        self.asked = 0

    def ask(self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float) -> Iterator[Answer]:
        self.asked += 1
        failing = self._failing.get(self.asked, set())
        for answer in super().ask(phase, common, own, deadline_s):
            if answer.client not in failing:
                yield answer
            elif not self._silent:
                yield Answer(answer.client, None, "made to fail")
