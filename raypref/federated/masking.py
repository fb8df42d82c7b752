"""Secure aggregation: the server learns the sum of the clients' vectors and nothing else of them.

The protocol is Bonawitz et al. 2017 ("Practical secure aggregation for privacy-preserving machine learning",
CCS), for an honest-but-curious server and clients that may leave at any step:

| step | a client sends                                          | the server answers with            |
|------|---------------------------------------------------------|------------------------------------|
| 0    | `advertise`: two public keys                            | `enrol`: the keys of all           |
| 1    | `share`: to each other, sealed, shares of two secrets   | `route`: what others sealed for it |
| 2    | `mask`: its vector under masks                          | `collect`: whose vectors came      |
| 3    | `unmask`: shares that take the masks off the sum        | `unmask`: the sum                  |

A vector is under one mask for each other client, which one of the pair adds and the other subtracts, and
one of the client alone. Of a client whose vector came, the others reveal shares of the seed of its own mask;
of one that left in between, shares of the key of its masks in pairs, which no vector of its own cancels.
Never both: together they bare a vector that comes late. So a client answers step 3 for one set of survivors,
and more than half of all must answer: a server that tells clients different survivors does not get both
either. Nothing here helps against a server that invents clients.

How messages travel is left open: they are bytes, and the two dataclasses of bytes below.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from Crypto.Random import get_random_bytes
from numpy.typing import NDArray

from raypref.errors import AggregationError
from raypref.federated.fixed_point import FixedPoint
from raypref.federated.keys import KeyPair, add_words, derive, seal, unseal

SECRET_BYTES = 16
"""Of the two secrets that a client shares: what Shamir's scheme over GF(2^128) takes."""


@dataclass(frozen=True)
class Session:
    """What the server and the clients of one round agree on before it; every key of the round depends on it.

    Raises:
        ValueError: fewer than two clients, a threshold of half of them or less, or of more than all.
    """

    run: str
    """Unique to the run."""
    round: int
    clients: int
    """Invited; those that never answer count too."""
    size: int
    """Numbers in a vector."""
    bound: float
    """Largest absolute value of a number."""
    threshold: int
    """Clients that must stay to the end, more than half."""

    def __post_init__(self) -> None:
        if not (2 <= self.clients < 2 * self.threshold <= 2 * self.clients):
            raise ValueError(
                f"{self.threshold} of {self.clients} clients cannot aggregate: at least two are needed, and "
                "more than half must stay."
            )

    @classmethod
    def of_majority(cls, run: str, round: int, clients: int, size: int, bound: float) -> Session:
        """Return a session in which the least majority must stay."""
        return cls(run, round, clients, size, bound, clients // 2 + 1)

    @property
    def context(self) -> bytes:
        """All of it as bytes."""
        return json.dumps(asdict(self)).encode()

    @property
    def fixed_point(self) -> FixedPoint:
        """How numbers are added."""
        return FixedPoint(self.clients, self.bound)

    def require(self, found: int, what: str) -> None:
        """Check that enough clients are left.

        Raises:
            AggregationError: they are fewer than the threshold, or more than were invited.
        """
        if not self.threshold <= found <= self.clients:
            raise AggregationError(
                f"Round {self.round}: {found} clients {what}; it takes {self.threshold} to {self.clients}. "
                "Nothing was revealed; start another round."
            )


@dataclass(frozen=True)
class PublicKeys:
    """What a client advertises."""

    channel: bytes
    """For the messages that others seal for it."""
    mask: bytes
    """For the masks it has in common with others."""


@dataclass(frozen=True)
class Shares:
    """What a survivor reveals: of every client that shared, one of the two, by client."""

    seeds: dict[int, bytes]
    """Of the seeds of the survivors' own masks."""
    keys: dict[int, bytes]
    """Of the seeds of the mask keys of those that left."""


class Client:
    """A client in one round. It answers each step once; what it needs for the next, it keeps."""

    def __init__(self, id: int, session: Session) -> None:
        """Draw the secrets of the round.

        Args:
            id: of the client in the round, 0 or more; no two have the same.
            session: the round.
        """
        self._id = id
        self._session = session
        self._seed, self._mask_secret = get_random_bytes(SECRET_BYTES), get_random_bytes(SECRET_BYTES)
        self._channel, self._mask = KeyPair(get_random_bytes(SECRET_BYTES)), KeyPair(self._mask_secret)
        self._roster: Mapping[int, PublicKeys] = {}
        self._channel_keys: dict[int, bytes] = {}
        self._own_share = b""
        self._shares: dict[int, bytes] = {}
        self._survivors: frozenset[int] | None = None

    def advertise(self) -> PublicKeys:
        """Return the client's public keys (step 0)."""
        return PublicKeys(self._channel.public, self._mask.public)

    def share(self, roster: Mapping[int, PublicKeys]) -> dict[int, bytes]:
        """Return for each other client the sealed shares of this one's secrets (step 1).

        Args:
            roster: the public keys of all, this client's among them.

        Raises:
            AggregationError: too few clients, a changed roster, or shares were sent before.
        """
        if self._roster:
            raise AggregationError("Shares of a client's secrets were asked for twice in one round.")
        self._session.require(len(roster), "advertised keys")
        if roster.get(self._id) != self.advertise():
            raise AggregationError("The roster does not have the keys that a client advertised.")
        self._roster = dict(roster)
        seeds = Shamir.split(self._session.threshold, len(roster), self._seed)
        keys = Shamir.split(self._session.threshold, len(roster), self._mask_secret)
        messages = {
            peer: seed + key for peer, (_, seed), (_, key) in zip(sorted(roster), seeds, keys, strict=True)
        }
        self._own_share = messages.pop(self._id)
        self._channel_keys = {
            peer: self._channel.agree(roster[peer].channel, b"channel", self._session.context)
            for peer in messages
        }
        return {
            peer: seal(self._channel_keys[peer], message, self._address(self._id, peer))
            for peer, message in messages.items()
        }

    def mask(self, vector_G: NDArray[np.float64], inbox: Mapping[int, bytes]) -> bytes:
        """Return the vector under its masks, 8 bytes a number (step 2).

        Args:
            vector_G: the numbers to add, as many as the session says.
            inbox: what the others sealed for this client.

        Raises:
            AggregationError: too few clients, a changed message, a number out of range, or a vector was
                masked before: two vectors under the same masks would reveal their difference.
        """
        if self._shares:
            raise AggregationError("Two vectors of a client were to be masked in one round.")
        if vector_G.shape != (self._session.size,):
            raise AggregationError(
                f"A client's vector has shape {vector_G.shape}, not ({self._session.size},)."
            )
        self._session.require(len(inbox) + 1, "shared their secrets")
        if not inbox.keys() <= self._roster.keys() - {self._id}:
            raise AggregationError("Shares came from clients that advertised no keys.")
        total_G = self._session.fixed_point.encode(vector_G)
        shares = {
            peer: unseal(self._channel_keys[peer], sealed, self._address(peer, self._id))
            for peer, sealed in inbox.items()
        }
        add_words(total_G, own_mask_key(self._seed, self._session))
        for peer in inbox:
            add_pair_mask(total_G, self._mask, self._id, peer, self._roster[peer].mask, self._session)
        self._shares = shares | {self._id: self._own_share}
        return total_G.astype("<u8").tobytes()

    def unmask(self, survivors: Collection[int]) -> Shares:
        """Return the shares that take the masks off the sum of the survivors' vectors (step 3).

        Args:
            survivors: the clients whose vectors came, this one among them.

        Raises:
            AggregationError: too few survivors, clients that took no part, or other survivors than before.
        """
        survived = frozenset(survivors)
        self._session.require(len(survived), "sent a vector")
        if self._id not in survived or not survived <= self._shares.keys():
            raise AggregationError(
                "The survivors of a round are no clients of it, or lack one that is asked."
            )
        if self._survivors not in (None, survived):
            raise AggregationError("A round was to be unmasked twice, for different survivors.")
        self._survivors = survived
        return Shares(
            seeds={peer: self._shares[peer][:SECRET_BYTES] for peer in survived},
            keys={peer: self._shares[peer][SECRET_BYTES:] for peer in self._shares.keys() - survived},
        )

    def _address(self, sender: int, recipient: int) -> bytes:
        return self._session.context + f" {sender}>{recipient}".encode()


def own_mask_key(seed: bytes, session: Session) -> bytes:
    """Return the key of the mask that a client has alone."""
    return derive(seed, b"own mask", session.context)


def add_pair_mask(
    total_G: NDArray[np.uint64], pair: KeyPair, id: int, peer: int, public: bytes, session: Session
) -> None:
    """Add in place the mask that client `id`, whose key pair it is, has in common with a peer.

    The smaller of the two ids adds the mask, the other subtracts it.
    """
    add_words(total_G, pair.agree(public, b"pair mask", session.context), subtract=id > peer)
