"""The sum of a round's updates: added in the open, or under masks so that the server sees the sum alone.

Both add the same numbers in fixed point and come to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from raypref.config import FederatedConfig
from raypref.errors import AggregationError, CorruptError
from raypref.federated.envelopes import (
    Masked,
    read_by_client,
    read_keys,
    read_shares,
    write_by_client,
    write_clients,
    write_keys,
)
from raypref.federated.fixed_point import FixedPoint
from raypref.federated.layout import BOUND, Layout, Sum
from raypref.federated.masking import Session
from raypref.federated.messages import Update, write_number
from raypref.federated.phases import KEYS, SHARES, TRAIN, UNMASK, Transport
from raypref.federated.unmasking import Server as Unmasking

T = TypeVar("T")

CLOSES = {KEYS: 1 / 8, SHARES: 1 / 4, TRAIN: 7 / 8, UNMASK: 1.0}
"""When a phase of a masked round closes at the latest, as a share of the round's deadline. What a phase
leaves is the next one's, and training leaves time to take the masks off."""


@dataclass
class Traffic:
    """Bytes of a round on the wire."""

    down: int = 0
    """To all clients."""
    up: int = 0
    """From all clients."""
    vectors: int = 0
    """Of user vectors among them."""


@dataclass
class Collected:
    """What came of asking the clients of a round."""

    sum: Sum | None = None
    """None where nothing could be added."""
    trouble: str = ""
    """Why not."""
    clients: list[int] = field(default_factory=list)
    """Whose updates are in it, sorted."""
    vectors: dict[int, Tensor] = field(default_factory=dict)
    """The user vectors that they sent."""
    losses: list[float] = field(default_factory=list)
    """Of clients, where they tell."""
    failures: dict[int, str] = field(default_factory=dict)
    """Of clients that failed: the kind of error, and why, where the server found it."""
    traffic: Traffic = field(default_factory=Traffic)


class Aggregation:
    """Asks the clients of a round for their updates and adds them up."""

    def __init__(
        self, transport: Transport, config: FederatedConfig, layout: Layout, width: int, run: str
    ) -> None:
        """Prepare to add up updates.

        Args:
            transport: reaches the clients.
            config: of the run.
            layout: of the model's shared parameters.
            width: Z, numbers in the user vector that comes with an update; 0 where none is to come.
            run: names the run; masks depend on it, so no other run has the same.
        """
        self._transport = transport
        self._config = config
        self._layout = layout
        self._width = width
        self._run = run

    def collect(self, round: int, broadcast: bytes, since: Mapping[int, int]) -> Collected:
        """Return what the clients of a round came to.

        Args:
            round: its number.
            broadcast: what all of them are sent.
            since: of each client, the round that it last counted in.
        """
        found = Collected()
        try:
            found.sum = (self._masked if self._config.masking else self._open)(found, round, broadcast, since)
        except AggregationError as error:
            return Collected(trouble=str(error), failures=found.failures, traffic=found.traffic)
        found.clients.sort()
        return found

    def _open(self, found: Collected, round: int, broadcast: bytes, since: Mapping[int, int]) -> Sum:
        fixed_point = FixedPoint(max(1, len(since)), BOUND)
        total_G = np.zeros(self._layout.size, np.uint64)

        def read(content: bytes) -> tuple[Update, np.ndarray]:
            update = Update.from_bytes(content)
            self._require_vector(update.vector_Z)
            return update, fixed_point.encode(self._layout.pack(update.delta, update.weight))

        own = {client: write_number(last) for client, last in since.items()}
        enough = self._quorum(len(since))
        deadline_s = self._config.deadline_s
        for client, (update, numbers_G) in self._ask(found, TRAIN, broadcast, own, read, deadline_s):
            total_G += numbers_G
            if update.loss is not None:
                found.losses.append(update.loss)
            self._count(found, client, update.vector_Z)
            if len(found.clients) >= enough:
                break
        if since and not found.clients:
            late = f"no answer within {self._config.deadline_s:g} s."
            raise AggregationError(next(iter(found.failures.values()), late))
        return self._layout.unpack(fixed_point.decode(total_G))

    def _masked(self, found: Collected, round: int, broadcast: bytes, since: Mapping[int, int]) -> Sum:
        if len(since) < 2:
            raise AggregationError(f"{len(since)} clients are too few for a sum that hides each.")
        session = Session.of_majority(self._run, round, len(since), self._layout.size, BOUND)
        server = Unmasking(session)
        enough = max(session.threshold, self._quorum(len(since)))
        began_s = monotonic()

        def ask(
            phase: str, common: bytes, own: Mapping[int, bytes], read: Callable[[bytes], T]
        ) -> Iterator[tuple[int, T]]:
            left_s = began_s + CLOSES[phase] * self._config.deadline_s - monotonic()
            return self._ask(found, phase, common, own, read, left_s)

        asked = dict.fromkeys(since, b"")
        roster = server.enrol(_first(enough, ask(KEYS, session.context, asked, read_keys)))
        keys = write_by_client({client: write_keys(key) for client, key in roster.items()})
        asked = dict.fromkeys(roster, b"")
        inboxes = server.route(_first(enough, ask(SHARES, keys, asked, read_by_client)))
        own = {
            client: write_number(since[client]) + write_by_client(inbox) for client, inbox in inboxes.items()
        }
        masked: dict[int, bytes] = {}

        def read(content: bytes) -> Masked:
            update = Masked.from_bytes(content)
            self._require_vector(update.vector_Z)
            return update

        for client, update in ask(TRAIN, broadcast, own, read):
            masked[client] = update.numbers
            self._count(found, client, update.vector_Z)
            if len(masked) >= enough:
                break
        survivors = server.collect(masked)
        asked = dict.fromkeys(sorted(survivors), b"")
        # A majority takes the masks off; nobody need wait for the others.
        revealed = _first(session.threshold, ask(UNMASK, write_clients(survivors), asked, read_shares))
        return self._layout.unpack(server.unmask(revealed))

    def _ask(
        self,
        found: Collected,
        phase: str,
        common: bytes,
        own: Mapping[int, bytes],
        read: Callable[[bytes], T],
        deadline_s: float,
    ) -> Iterator[tuple[int, T]]:
        """Ask, take note of the bytes and of who failed, and yield what came; ask nobody if time is up."""
        if deadline_s <= 0:
            return
        found.traffic.down += sum(len(common) + len(payload) for payload in own.values())
        for answer in self._transport.ask(phase, common, own, deadline_s):
            if answer.content is None:
                found.failures[answer.client] = answer.failure
                continue
            found.traffic.up += len(answer.content)
            try:
                yield answer.client, read(answer.content)
            except (CorruptError, AggregationError) as error:
                found.failures[answer.client] = f"{type(error).__name__}: {error}"

    def _require_vector(self, vector_Z: Tensor | None) -> None:
        """Raise CorruptError for a user vector that is missing, not wanted, or of no use to anybody."""
        if vector_Z is None:
            fits = self._width == 0
        else:
            fits = vector_Z.shape == (self._width,) and vector_Z.dtype == torch.float32
            fits = fits and bool(torch.isfinite(vector_Z).all())
        if not fits:
            raise CorruptError(f"an update has no user vector of {self._width} finite numbers.")

    def _quorum(self, sampled: int) -> int:
        """Return how many updates close a round."""
        return math.ceil(self._config.quorum * sampled)

    def _count(self, found: Collected, client: int, vector_Z: Tensor | None) -> None:
        """Take note of a client whose update came."""
        found.clients.append(client)
        if vector_Z is not None:
            found.vectors[client] = vector_Z
            found.traffic.vectors += vector_Z.nbytes


def _first(count: int, answers: Iterable[tuple[int, T]]) -> dict[int, T]:
    """Return the first answers, by client; whoever comes later is not waited for."""
    return dict(islice(answers, count))
