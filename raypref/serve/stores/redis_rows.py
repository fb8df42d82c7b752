"""Users as Redis keeps them: a few hashes each, an index of users and one of tombstones."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raypref.serve.stores.base import Event, Key
from raypref.serve.stores.rules import Standing

Command = tuple[Any, ...]

# One tag, so that all keys are of one slot and a script may change a user and the index of users together.
PREFIX = "{raypref}:"
KEYS = f"{PREFIX}keys"
TOMBSTONES = f"{PREFIX}tombstones"
SETTINGS = f"{PREFIX}settings"

WORDS = 1000
"""Most words of a command in a script: Lua's stack is small."""


def at(kind: str, owner: str) -> str:
    """Return the key of one of a user's hashes: user, events, evidence, raw, gone, operations."""
    return f"{PREFIX}{kind}:{owner}"


def spread(name: str, *words: Sequence[Any]) -> list[Command]:
    """Return commands with a name and a key that together hold all words, given in groups of one size."""
    command, kept = name.split(" ")
    size = max(1, WORDS // len(words[0])) if words else 1
    return [
        (command, kept, *(word for group in words[start : start + size] for word in group))
        for start in range(0, len(words), size)
    ]


def pack_evidence(encoder: str, evidence: bytes) -> bytes:
    """Return the value of an event in `evidence`."""
    name = encoder.encode()
    return struct.pack("<I", len(name)) + name + evidence


def pack_event(event: Event) -> tuple[bytes, bytes, bytes]:
    """Return the values of an event in `events`, `evidence` and `raw`."""
    return (
        pack_numbers(event),
        pack_evidence(event.encoder, event.evidence),
        struct.pack("<I", len(event.chosen)) + event.chosen + event.rejected,
    )


def unpack_raw(value: bytes) -> tuple[bytes, bytes]:
    """Return chosen and rejected."""
    (size,) = struct.unpack_from("<I", value)
    return value[4 : 4 + size], value[4 + size :]


def unpack_event(name: bytes, numbers: bytes, evidence: bytes, raw: bytes | None) -> Event:
    """Return an event from its values."""
    time_s, weight = struct.unpack("<dd", numbers)
    (size,) = struct.unpack_from("<I", evidence)
    chosen, rejected = unpack_raw(raw) if raw is not None else (b"", b"")
    encoder = evidence[4 : 4 + size].decode()
    return Event(name.decode(), time_s, weight, chosen, rejected, encoder, evidence[4 + size :])


USER = ("tenant", "version", "shots", "basis", "vector", "erased_version", "erased_s")


@dataclass
class User:
    """A user's row."""

    log: bool
    version: int
    shots: int
    basis: str
    vector: bytes
    erased_s: float | None

    @classmethod
    def of(cls, row: Sequence[bytes | None]) -> User:
        """Return what the answer to `get` says."""
        tenant, version, shots, basis, vector, erased_version, erased_s = row
        return cls(
            tenant is not None,
            int(version or erased_version or 0),
            int(shots or 0),
            (basis or b"").decode(),
            vector or b"",
            float(erased_s) if erased_version is not None and erased_s is not None else None,
        )

    def standing(self) -> Standing:
        """Return how the user stands, without events."""
        return Standing(self.version, self.shots, self.erased_s)


def get(owner: str) -> Command:
    """Return the command whose answer `User.of` reads."""
    return ("HMGET", at("user", owner), *USER)


def member(whose: Key) -> bytes:
    """Return a user's name in the index, whose bytes order as tenant and user do."""
    return f"{whose.tenant}\0{whose.user}".encode()


def pack_numbers(event: Event) -> bytes:
    """Return the value of an event in `events`."""
    return struct.pack("<dd", event.time_s, event.weight)


def count(owner: str, version: int, shots: int) -> list[Command]:
    """Return what sets the version; the vector is no longer that of this version."""
    user = at("user", owner)
    return [("HSET", user, "version", version, "shots", shots), ("HDEL", user, "basis", "vector")]


def put(owner: str, whose: Key, version: int, shots: int, events: Iterable[Event]) -> list[Command]:
    """Return what adds events to a user, with the version and shots after it."""
    packed = [(event.event_id, *pack_event(event)) for event in events]
    return [
        ("HSET", at("user", owner), "tenant", whose.tenant, "name", whose.user),
        *count(owner, version, shots),
        *spread(f"HSET {at('events', owner)}", *((name, numbers) for name, numbers, _, _ in packed)),
        *spread(f"HSET {at('evidence', owner)}", *((name, evidence) for name, _, evidence, _ in packed)),
        *spread(f"HSET {at('raw', owner)}", *((name, raw) for name, _, _, raw in packed)),
        ("ZADD", KEYS, 0, member(whose)),
    ]
