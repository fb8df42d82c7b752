"""The side of the clients: many of them in one process, each with comparisons of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from raypref.checkpoint import build
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons, Tables
from raypref.errors import RayprefError
from raypref.federated.envelopes import (
    Masked,
    read_by_client,
    read_clients,
    read_keys,
    read_session,
    write_by_client,
    write_keys,
    write_shares,
)
from raypref.federated.layout import Layout
from raypref.federated.local import local_round
from raypref.federated.masking import Client, Session
from raypref.federated.messages import Broadcast, read_number
from raypref.federated.phases import KEYS, SHARES, TRAIN, UNMASK, Answer
from raypref.federated.rows import FIRST, RowsTable
from raypref.train.shards import own_rows, shared_parameters
from raypref.types import Dims

LOG = logging.getLogger(__name__)


class DroppedOutError(RayprefError):
    """A client fails on purpose: `federated.drop_out` rehearses it."""


class LostSecretsError(RayprefError):
    """A client's process was started anew in the middle of a masked round, whose secrets it had in memory."""


class Host:
    """Many clients in one process. What one of them is told and tells passes through `answer` alone."""

    def __init__(
        self, config: RunConfig, items: ItemTable, tables: Tables, folder: Path, buckets: Sequence[int]
    ) -> None:
        """Carry the clients of some buckets of users.

        Args:
            config: the run.
            items: as the method wants them, with prompts or without.
            tables: the prepared tables; a client's comparisons are its own alone.
            folder: where clients keep what is theirs.
            buckets: of users, carried by this host alone.
        """
        self._config = config
        self._items = items
        self._comparisons: dict[int, tuple[int, Comparisons]] = {}
        for bucket in buckets:
            learn = tables.comparisons("seen", ["train"], [bucket])
            self._comparisons |= dict.fromkeys(learn.user_U.tolist(), (bucket, learn))
        self._model = build(config.method, Dims(items.width, 1), config.train.seed)
        self._fresh = own_rows(self._model)
        self._rows = RowsTable(folder)
        self._layout = Layout(shared_parameters(self._model))
        self._session: Session | None = None
        self._masking: dict[int, Client] = {}
        self._phases = {KEYS: self._keys, SHARES: self._shares, TRAIN: self._train, UNMASK: self._unmask}

    def clients(self) -> np.ndarray:
        """Return the numbers of the clients, sorted."""
        return np.array(sorted(self._comparisons), np.int64)

    def answer(self, phase: str, client: int, common: bytes, own: bytes) -> bytes:
        """Do what a phase asks of a client, and return what it sends back.

        Raises:
            DroppedOutError: the client fails on purpose.
            DivergedError: its training did.
            LostSecretsError: it knows nothing of the masked round that it is asked to go on with.
            AggregationError: secure aggregation was asked for something that would bare its update.
        """
        return self._phases[phase](client, common, own)

    def _keys(self, client: int, common: bytes, own: bytes) -> bytes:
        session = read_session(common)
        if self._session != session:
            self._session, self._masking = session, {}
        self._masking[client] = Client(client, session)
        return write_keys(self._masking[client].advertise())

    def _shares(self, client: int, common: bytes, own: bytes) -> bytes:
        roster = {peer: read_keys(keys) for peer, keys in read_by_client(common).items()}
        return write_by_client(self._masked(client).share(roster))

    def _train(self, client: int, common: bytes, own: bytes) -> bytes:
        broadcast, (since, inbox) = Broadcast.from_bytes(common), read_number(own)
        self._maybe_drop_out(client, broadcast.round)
        masks = self._masked(client) if self._config.federated.masking else None
        bucket, learn = self._comparisons[client]
        kept = self._fresh if since == FIRST or not self._fresh else self._rows.read(bucket, client, since)
        own_comparisons = learn.select(np.array([client]))
        update, kept = local_round(
            self._model, broadcast, client, own_comparisons, self._items.gather, kept, self._config
        )
        if self._fresh:
            self._rows.write(bucket, client, since, broadcast.round, kept)
        if masks is None:
            return update.to_bytes()
        numbers_G = self._layout.pack(update.delta, update.weight)
        masked = masks.mask(numbers_G, read_by_client(inbox))
        return Masked(masked, update.vector_Z).to_bytes()

    def _unmask(self, client: int, common: bytes, own: bytes) -> bytes:
        return write_shares(self._masked(client).unmask(read_clients(common)))

    def _masked(self, client: int) -> Client:
        """Return what a client knows of the masked round that it is in."""
        try:
            return self._masking[client]
        except KeyError:
            raise LostSecretsError(f"client {client} has no secrets of this round.") from None

    def _maybe_drop_out(self, client: int, round: int) -> None:
        entropy = np.random.SeedSequence((self._config.train.seed, client, round))
        if np.random.Generator(np.random.Philox(entropy)).random() < self._config.federated.drop_out:
            raise DroppedOutError("dropped out: a rehearsal (federated.drop_out)")


class InProcess:
    """Clients in this process, one after the other: for tests, for studies, and the plain loop beside Ray."""

    def __init__(self, host: Host) -> None:
        """Reach the clients of a host."""
        self._host = host

    def clients(self) -> np.ndarray:
        """Return the numbers of all clients, sorted."""
        return self._host.clients()

    def ask(self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float) -> Iterator[Answer]:
        """Ask one client after the other."""
        ends = time.monotonic() + deadline_s
        for client, payload in own.items():
            if time.monotonic() >= ends:
                return
            yield attempt(self._host, phase, client, common, payload)


def attempt(host: Host, phase: str, client: int, common: bytes, own: bytes) -> Answer:
    """Ask a client of a host; whatever goes wrong with it is an answer too and stops nobody else.

    The answer names the kind of error alone: its text may hold the client's numbers, and stays here.
    """
    try:
        return Answer(client, host.answer(phase, client, common, own))
    except Exception as error:
        LOG.debug("client %d failed", client, exc_info=True)
        return Answer(client, None, type(error).__name__)
