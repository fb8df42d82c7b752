"""The rounds: who is asked, what it came to, and what is told of it. Knows no method and no Ray."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from raypref.config import FederatedConfig
from raypref.errors import InputError
from raypref.federated.accountant import Accountant
from raypref.federated.aggregation import Aggregation, Collected
from raypref.federated.layout import Layout
from raypref.federated.phases import Transport
from raypref.federated.server import Server
from raypref.train.shards import shared_parameters

LOG = logging.getLogger(__name__)

FRUITLESS = 3
"""Rounds in a row in which nothing could be added, after which a run gives up."""


@dataclass(frozen=True)
class Round:
    """What a closed round did."""

    round: int
    """Rounds closed, this one included."""
    sampled: int
    found: Collected
    step: float
    """L2 length of the server's step."""
    epsilon: float
    """ε of each client so far, nats, at the δ of the run; infinite without privacy."""
    seconds: float

    @property
    def failed(self) -> int:
        """Clients whose update did not come, or not whole, and that said why."""
        return len(self.found.failures.keys() - self.found.clients)

    @property
    def late(self) -> int:
        """Clients whose update had not come when the round closed."""
        return self.sampled - len(self.found.clients) - self.failed

    def said(self) -> str:
        """Return in a line how many clients counted, how many failed of what, and how many were late."""
        failures = self.found.failures
        kinds = Counter(failures[client].partition(":")[0] for client in failures.keys() - self.found.clients)
        lost = [f"{count} failed of {kind}" for kind, count in sorted(kinds.items())]
        if self.late and not self.found.trouble:
            lost.append(f"{self.late} late")
        said = ", ".join([f"{len(self.found.clients)} of {self.sampled} clients counted", *lost])
        trouble = f"; nothing could be added up: {self.found.trouble}" if self.found.trouble else ""
        return f"round {self.round}: {said}{trouble}"


def federate(
    server: Server, transport: Transport, config: FederatedConfig, run: str = "run"
) -> Iterator[Round]:
    """Run the rounds that are left; the server's state is that of the last closed one whenever this pauses.

    A round in which nothing could be added closes as it began. One that lost clients is logged as a warning.

    Args:
        server: changed in place.
        transport: reaches the clients.
        config: of the run.
        run: names the run.

    Raises:
        InputError: nothing could be added in `FRUITLESS` rounds in a row.
    """
    layout = Layout(shared_parameters(server.model))
    width = server.known.vector_CZ.shape[1] if server.model.peers else 0
    aggregation = Aggregation(transport, config, layout, width, run)
    privacy = config.privacy
    accountant = privacy and Accountant(server.rate, privacy.noise, privacy.delta)
    fruitless = 0
    while server.round < config.rounds:
        began = time.monotonic()
        chosen = server.sample().tolist()
        since = {client: server.since(client) for client in chosen}
        found = aggregation.collect(server.round, server.broadcast().to_bytes(), since)
        fruitless = fruitless + 1 if found.trouble else 0
        if fruitless == FRUITLESS:
            raise InputError(
                f"rounds {server.round - 1} to {server.round + 1}: nothing could be added up; {found.trouble}"
            )
        step = server.close(found)
        epsilon = accountant.epsilon(server.round) if accountant else math.inf
        done = Round(server.round, len(chosen), found, step, epsilon, time.monotonic() - began)
        if len(found.clients) < done.sampled:
            LOG.warning("%s", done.said())
        yield done
