"""Rounds of secure aggregation, for the tests of both sides."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from raypref.federated.masking import Client, PublicKeys, Session, Shares
from raypref.federated.unmasking import Server

SIZE = 12
SESSION = Session.of_majority("run", 3, clients=5, size=SIZE, bound=2.0)


class Round:
    """A round of all clients of a session, stepped by hand; ids are not the places on the roster."""

    def __init__(self, session: Session = SESSION, seed: int = 0) -> None:
        self.session, self.server = session, Server(session)
        self.clients = {7 * place + 2: Client(7 * place + 2, session) for place in range(session.clients)}
        random = np.random.default_rng(seed)
        self.vectors = {id: random.uniform(-2, 2, session.size) for id in self.clients}

    def enrol(self, gone: Collection[int] = ()) -> dict[int, PublicKeys]:
        kept = {id: client for id, client in self.clients.items() if id not in gone}
        return self.server.enrol({id: client.advertise() for id, client in kept.items()})

    def route(
        self, roster: Mapping[int, PublicKeys], gone: Collection[int] = ()
    ) -> dict[int, dict[int, bytes]]:
        return self.server.route({id: self.clients[id].share(roster) for id in roster if id not in gone})

    def masked(
        self, inboxes: Mapping[int, Mapping[int, bytes]], gone: Collection[int] = ()
    ) -> dict[int, bytes]:
        return {
            id: self.clients[id].mask(self.vectors[id], inbox)
            for id, inbox in inboxes.items()
            if id not in gone
        }

    def revealed(self, survivors: Collection[int], gone: Collection[int] = ()) -> dict[int, Shares]:
        return {id: self.clients[id].unmask(survivors) for id in survivors if id not in gone}

    def plain(self, survivors: Collection[int]) -> NDArray[np.float64]:
        fixed = self.session.fixed_point
        total = sum(fixed.encode(self.vectors[id]) for id in survivors)
        return fixed.decode(np.asarray(total, np.uint64))


def finish(round: Round, leaves: Mapping[int, int]) -> tuple[frozenset[int], NDArray[np.float64]]:
    """Run a round whose clients leave before a step of theirs."""
    gone = [{id for id, step in leaves.items() if step == at} for at in range(4)]
    inboxes = round.route(round.enrol(gone[0]), gone[1])
    survivors = round.server.collect(round.masked(inboxes, gone[2]))
    return survivors, round.server.unmask(round.revealed(survivors, gone[3]))
