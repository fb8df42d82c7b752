"""Clients on a fixed pool of Ray actors: 100,000 clients need no more actors than there are cores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.federated.host import Host, attempt
from raypref.federated.phases import Answer

RETRIES = 1
"""Times a client is asked again whose actor died under it; it answers the same."""


class Carrier:
    """What an actor does: it carries the clients of its buckets."""

    def __init__(self, raw: dict[str, Any], folder: str, buckets: list[int]) -> None:
        """Open the tables, on the node of the actor."""
        config = RunConfig.model_validate(raw)
        torch.set_num_threads(max(1, int(config.train.cpus_per_worker)))
        torch.use_deterministic_algorithms(True, warn_only=True)
        items = ItemTable.open(config.items_dir).with_prompts(config.method.needs_prompts)
        self._host = Host(config, items, Tables.open(config.tables_dir), Path(folder), buckets)

    def clients(self) -> np.ndarray:
        """Return the numbers of the clients, sorted."""
        return self._host.clients()

    def answer(self, phase: str, client: int, common: bytes, own: bytes) -> Answer:
        """Ask a client."""
        return attempt(self._host, phase, client, common, own)


class Pool:
    """A transport over actors, each with the clients of its share of the buckets."""

    def __init__(self, config: RunConfig, tables: Tables, folder: Path) -> None:
        """Start the actors.

        Args:
            config: the run, with absolute paths.
            tables: the prepared tables.
            folder: where clients keep what is theirs.

        Raises:
            InputError: there are fewer buckets than actors.
        """
        workers = config.train.most_workers
        # Ray knows the return types of no class that it wraps.
        actor: Any = ray.remote(Carrier).options(
            num_cpus=config.train.cpus_per_worker,
            num_gpus=0,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        raw = config.model_dump(mode="json")
        self._actors: list[Any] = [
            actor.remote(raw, str(folder), tables.shard(rank, workers)) for rank in range(workers)
        ]
        carried = ray.get([actor.clients.remote() for actor in self._actors])
        self._starting: dict[int, Any] = {}
        self._actor_of = {int(client): rank for rank, clients_N in enumerate(carried) for client in clients_N}

    def clients(self) -> np.ndarray:
        """Return the numbers of all clients, sorted."""
        return np.array(sorted(self._actor_of), np.int64)

    def ask(self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float) -> Iterator[Answer]:
        """Ask all clients at once; an actor takes its own one after the other.

        An actor that has not answered at all when the time is up is started anew, since it may hang; not
        again before it is up.
        """
        ends = time.monotonic() + deadline_s
        shared = ray.put(common)
        waiting: dict[Any, int] = {
            self._actors[self._actor_of[client]].answer.remote(phase, client, shared, payload): client
            for client, payload in own.items()
        }
        silent = {self._actor_of[client] for client in own}
        try:
            while waiting:
                left_s = ends - time.monotonic()
                done, _ = ray.wait(list(waiting), num_returns=1, timeout=max(0.0, left_s))
                if not done:
                    for rank in silent:
                        self._start_anew(rank)
                    return
                client = waiting.pop(done[0])
                silent.discard(self._actor_of[client])
                yield _answer(done[0], client)
        finally:
            for reference in waiting:
                ray.cancel(reference)

    def _start_anew(self, rank: int) -> None:
        actor, starting = self._actors[rank], self._starting.get(rank)
        if starting is None or ray.wait([starting], timeout=0)[0]:
            ray.kill(actor, no_restart=False)
            self._starting[rank] = actor.clients.remote()

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)


def _answer(reference: Any, client: int) -> Answer:
    try:
        return ray.get(reference)
    except RayError as error:
        return Answer(client, None, type(error).__name__)
