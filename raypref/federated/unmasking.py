"""The server of a round of secure aggregation; `masking` has the protocol and the clients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from numpy.typing import NDArray

from raypref.errors import AggregationError
from raypref.federated.keys import KeyPair, add_words
from raypref.federated.masking import PublicKeys, Session, Shares, add_pair_mask, own_mask_key


class Server:
    """The server of one round. Each step takes what came until it was closed; who is missing has left."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._roster: dict[int, PublicKeys] = {}
        self._shared: frozenset[int] = frozenset()
        self._survivors: frozenset[int] = frozenset()
        self._total_G = np.zeros(session.size, np.uint64)

    def enrol(self, advertised: Mapping[int, PublicKeys]) -> dict[int, PublicKeys]:
        """Return the roster, for every client in it (step 0).

        Raises:
            AggregationError: too few clients.
        """
        self._session.require(len(advertised), "advertised keys")
        self._roster = dict(advertised)
        return self._roster

    def route(self, sealed: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """Return for each client that shared its secrets what the others sealed for it (step 1).

        Args:
            sealed: by sender, then recipient.

        Raises:
            AggregationError: too few clients, one that is not on the roster, or one that left others out.
        """
        self._session.require(len(sealed), "shared their secrets")
        for sender, messages in sealed.items():
            if sender not in self._roster or set(messages) != self._roster.keys() - {sender}:
                raise AggregationError(
                    f"Client {sender} did not share its secrets with all others on the roster."
                )
        self._shared = frozenset(sealed)
        return {
            recipient: {sender: sealed[sender][recipient] for sender in sealed if sender != recipient}
            for recipient in sealed
        }

    def collect(self, masked: Mapping[int, bytes]) -> frozenset[int]:
        """Add the masked vectors, and return the survivors, for each of them (step 2).

        Raises:
            AggregationError: too few clients, one that shared no secrets, or a vector of another size.
        """
        self._session.require(len(masked), "sent a vector")
        if not masked.keys() <= self._shared:
            raise AggregationError("A vector came from a client that shared no secrets.")
        for client, vector in masked.items():
            if len(vector) != self._total_G.nbytes:
                raise AggregationError(f"The vector of client {client} has {len(vector)} bytes.")
        self._total_G = np.zeros_like(self._total_G)
        for vector in masked.values():
            self._total_G += np.frombuffer(vector, "<u8")
        self._survivors = frozenset(masked)
        return self._survivors

    def unmask(self, revealed: Mapping[int, Shares]) -> NDArray[np.float64]:
        """Return the sum of the survivors' vectors, exact in fixed point (step 3).

        Raises:
            AggregationError: too few clients, or their shares are not those of this round's secrets.
        """
        self._session.require(len(revealed), "revealed shares")
        left = self._shared - self._survivors
        for client, shares in revealed.items():
            asked = client in self._survivors
            if not asked or shares.seeds.keys() ^ self._survivors or shares.keys.keys() ^ left:
                raise AggregationError(f"Client {client} did not reveal the shares that it was asked for.")
        places = {client: place for place, client in enumerate(sorted(self._roster), start=1)}
        chosen = {places[client]: revealed[client] for client in sorted(revealed)[: self._session.threshold]}
        total_G = self._total_G.copy()
        for client in self._survivors:
            seed = Shamir.combine([(place, shares.seeds[client]) for place, shares in chosen.items()])
            add_words(total_G, own_mask_key(seed, self._session), subtract=True)
        for client in left:
            pair = KeyPair(Shamir.combine([(place, shares.keys[client]) for place, shares in chosen.items()]))
            if pair.public != self._roster[client].mask:
                raise AggregationError(f"The shares of client {client}'s mask key were changed.")
            # The survivors' vectors lack the other half of these masks; the one who left adds it now.
            for survivor in self._survivors:
                public = self._roster[survivor].mask
                add_pair_mask(total_G, pair, client, survivor, public, self._session)
        return self._session.fixed_point.decode(total_G)
