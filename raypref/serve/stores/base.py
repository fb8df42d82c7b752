"""What every store of users is: a durable log of comparisons, and a cache of what was inferred from it.

The log is the truth. A user's *events* are comparisons as they were given (raw) and as the model sees them
(evidence); a user's *vector* is a cache that a new version of the log, another bundle or a lost row merely
makes anew. Stores know no model: what they keep of it is bytes.

All methods block, may be called from any thread, and take many users at once, so that one round trip, and one
durable commit, serves a whole batch of requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple, Protocol

from raypref.errors import RayprefError


class StoreDown(RayprefError):
    """The store cannot be reached or did not answer in time; nothing that it did not acknowledge is kept."""


class Key(NamedTuple):
    """Whose: users of one tenant are invisible to every other."""

    tenant: str
    user: str


@dataclass(frozen=True)
class Event:
    """One comparison of a user."""

    event_id: str
    """Unique within the user; the same id again is the same comparison, sent again."""
    time_s: float
    """When the user compared, seconds since 1970."""
    weight: float
    """Above 0; `decay` multiplies it."""
    chosen: bytes
    """The chosen item, as given: what a new bundle needs to encode the comparison again."""
    rejected: bytes
    encoder: str
    """Which bundle `evidence` belongs to."""
    evidence: bytes
    """Little-endian float32 (E)."""


class State(NamedTuple):
    """What is known of a user without reading the log."""

    version: int = 0
    """Grows by one with every change of the log, and never falls, not even by `erase`. 0: never heard of."""
    shots: int = 0
    """Events in the log."""
    basis: str = ""
    """What `vector` was made with; empty where there is no vector of this version."""
    vector: bytes = b""
    """Little-endian float32 (Z), inferred from exactly this version of the log."""


@dataclass(frozen=True)
class Write:
    """Comparisons to add to a user: all of them or none."""

    key: Key
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Written:
    """What became of a write."""

    outcome: Literal["applied", "conflict", "full"]
    """`conflict`: an id is taken by another comparison (raw items differ). `full`: the user would have more
    events than `limit`. Both change nothing."""
    state: State
    """After the write; without the vector."""
    applied: int = 0
    """Events that are new."""
    duplicates: int = 0
    """Events that were there already, with the same raw items; weight, time and evidence stay as is."""
    erased: int = 0
    """Events that came too late: see `erase`."""
    conflicts: tuple[str, ...] = ()
    """Ids of the events in conflict."""


@dataclass(frozen=True)
class Tombstone:
    """What is left of an erased user or of forgotten events: only what turns late retries away."""

    owner: str
    """Digest of tenant and user, with the store's salt, hexadecimal."""
    version: int
    """Last version of the erased log, where a user who comes back goes on; 0 where only events are gone."""
    erased_s: float
    """When the user was erased, seconds since 1970; 0 where only events were forgotten."""
    events: tuple[str, ...] = ()
    """Digests of the events that are gone, sorted."""


@dataclass(frozen=True)
class Record:
    """All of a user, for export and import; equal records are equal users."""

    key: Key
    version: int
    events: tuple[Event, ...]
    """In the order of their ids."""
    operations: tuple[str, ...] = field(default=())
    """Ids of the decays applied, sorted, so that their retries stay harmless."""


def owner_digest(salt: str, key: Key) -> str:
    """Return what a tombstone calls a user: nobody without the store's salt can tell who it was."""
    return _digest(salt, key.tenant, key.user)


def event_digest(salt: str, key: Key, event_id: str) -> str:
    """Return what a tombstone calls an event."""
    return _digest(salt, key.tenant, key.user, event_id)


def _digest(salt: str, *parts: str) -> str:
    # No id holds a NUL, so the parts cannot run into one another.
    digest = _keyed(salt).copy()
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()


@cache
def _keyed(salt: str) -> hashlib.blake2b:
    """Return a digest that has taken in the salt: half of the work on a name."""
    return hashlib.blake2b(key=bytes.fromhex(salt), digest_size=16)


class Store(Protocol):
    """A store; every implementation passes the same contract test."""

    kind: str
    """Its kind in a word, such as `sqlite`."""

    durable: str
    """What an acknowledgement means here, in a sentence."""

    nodes: Literal["one", "many"]
    """Whether replicas on several machines may share it."""

    def read(self, keys: Sequence[Key]) -> list[State]:
        """Return the states of users, in their order; unknown users have the empty state."""
        ...

    def events(self, keys: Sequence[Key], raw: bool = False) -> list[tuple[int, tuple[Event, ...]]]:
        """Return version and events of each user, the events ordered by id.

        Args:
            keys: whose.
            raw: also read the raw items; where False, `chosen` and `rejected` are empty.
        """
        ...

    def append(self, writes: Sequence[Write], limit: int) -> list[Written]:
        """Add comparisons in one durable commit: when it returns, they survive a crash of everything.

        A write is applied whole or not at all, in the order given; two of one user may stand in one call.

        Args:
            writes: what to add.
            limit: most events a user may have.
        """
        ...

    def forget(self, key: Key, event_id: str) -> State | None:
        """Remove one comparison, durably; None where the user has no such comparison.

        The id stays taken: a late retry of the comparison counts as `erased`.
        """
        ...

    def decay(self, key: Key, factor: float, operation: str, at_s: float) -> State | None:
        """Multiply the weights of all events with `time_s` ≤ `at_s` by `factor`, durably.

        An operation that was applied before changes nothing. None where the user has no events.
        """
        ...

    def erase(self, key: Key, at_s: float) -> bool:
        """Erase a user, durably: events, vector, operations. False where there was nothing to erase.

        A `Tombstone` stays. From then on a write's events that were in the erased log, or whose `time_s` is
        not after `at_s`, are turned away as `erased`; later ones begin a new log, whose versions go on.
        """
        ...

    def remember(self, vectors: Iterable[tuple[Key, int, str, bytes]]) -> None:
        """Keep vectors (user, version, basis, vector) of users that still have that version; not durable."""
        ...

    def reencode(self, key: Key, encoder: str, evidence: Sequence[tuple[str, bytes]]) -> None:
        """Replace the evidence of events that still exist by another's; not durable, no new version."""
        ...

    def keys(self, after: Key | None = None, limit: int = 1000) -> list[Key]:
        """Return users that have a log, in the order of tenant and user by code point, after a given one."""
        ...

    def records(self, keys: Sequence[Key]) -> list[Record]:
        """Return all of some users; one without a log has version 0 and no events."""
        ...

    def tombstones(self) -> Iterator[Tombstone]:
        """Yield what is left of erased users and forgotten events, ordered by owner."""
        ...

    def restore(self, records: Iterable[Record], tombstones: Iterable[Tombstone]) -> None:
        """Put users and tombstones into a store that has none of them; for import, durable when it returns.

        Raises:
            InputError: a user is already here.
        """
        ...

    def setting(self, name: str, default: str) -> str:
        """Return a named string kept with the store, setting it to `default` where it has none, durably.

        An empty default sets nothing: empty is returned where the store has none.
        `salt` is one: 64 hexadecimal digits that `owner_digest` takes, drawn when the store is first used.
        """
        ...

    def compact(self) -> None:
        """Rewrite the store's files so that nothing erased is left in them, where that is ours to do."""
        ...

    def check(self) -> None:
        """Raise StoreDown unless the store answers."""
        ...

    def close(self) -> None:
        """Let go of connections and files; the store is not used afterwards."""
        ...
