"""Users in this process's memory: for tests and trials."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

from raypref.serve.stores.base import (
    Event,
    Key,
    Record,
    State,
    Tombstone,
    Write,
    Written,
    event_digest,
    owner_digest,
)
from raypref.serve.stores.rules import Standing, decayed, draw_salt, here, here_erased, judge


@dataclass
class _Log:
    version: int
    events: dict[str, Event] = field(default_factory=dict)
    operations: set[str] = field(default_factory=set)
    basis: str = ""
    vector: bytes = b""

    def change(self, by: int = 1) -> State:
        self.version += by
        self.basis, self.vector = "", b""
        return self.state()

    def state(self) -> State:
        return State(self.version, len(self.events), self.basis, self.vector)


@dataclass
class _Stone:
    version: int = 0
    erased_s: float = 0.0
    events: set[str] = field(default_factory=set)


class MemoryStore:
    """A store that ends with its process; every process has its own."""

    kind = "memory"
    durable = "Kept in one process's memory: lost when it ends."
    nodes: Literal["one", "many"] = "one"

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._logs: dict[Key, _Log] = {}
        self._stones: dict[str, _Stone] = {}
        self._settings: dict[str, str] = {}

    @property
    def _salt(self) -> str:
        return self._settings.get("salt") or self._settings.setdefault("salt", draw_salt())

    def _state(self, key: Key) -> State:
        log = self._logs.get(key)
        if log is not None:
            return log.state()
        stone = self._stones.get(owner_digest(self._salt, key))
        return State() if stone is None else State(stone.version)

    def read(self, keys: Sequence[Key]) -> list[State]:
        """Return the states of users."""
        with self._lock:
            return [self._state(key) for key in keys]

    def events(self, keys: Sequence[Key], raw: bool = False) -> list[tuple[int, tuple[Event, ...]]]:
        """Return version and events of each user."""
        with self._lock:
            return [(self._state(key).version, self._events(key, raw)) for key in keys]

    def _events(self, key: Key, raw: bool) -> tuple[Event, ...]:
        log = self._logs.get(key)
        events = [log.events[name] for name in sorted(log.events)] if log else []
        return tuple(event if raw else replace(event, chosen=b"", rejected=b"") for event in events)

    def append(self, writes: Sequence[Write], limit: int) -> list[Written]:
        """Add comparisons."""
        with self._lock:
            return [self._append(write, limit) for write in writes]

    def _append(self, write: Write, limit: int) -> Written:
        log, stone = self._logs.get(write.key), self._stones.get(owner_digest(self._salt, write.key))
        standing = Standing()
        if stone is not None:
            standing.version = stone.version
            standing.erased_s = stone.erased_s if stone.version else None
            names = {event.event_id for event in write.events}
            standing.gone = {
                name for name in names if event_digest(self._salt, write.key, name) in stone.events
            }
        if log is not None:
            standing.version, standing.shots = log.version, len(log.events)
            standing.raw = {name: (event.chosen, event.rejected) for name, event in log.events.items()}
        written, fresh = judge(write, standing, limit)
        if fresh:
            log = log or self._logs.setdefault(write.key, _Log(standing.version - len(fresh)))
            log.events.update((event.event_id, event) for event in fresh)
            log.change(len(fresh))
        return written

    def forget(self, key: Key, event_id: str) -> State | None:
        """Remove one comparison."""
        with self._lock:
            log = self._logs.get(key)
            if log is None or log.events.pop(event_id, None) is None:
                return None
            stone = self._stones.setdefault(owner_digest(self._salt, key), _Stone())
            stone.events.add(event_digest(self._salt, key, event_id))
            return log.change()

    def decay(self, key: Key, factor: float, operation: str, at_s: float) -> State | None:
        """Multiply the weights of events up to `at_s`, once an operation."""
        with self._lock:
            log = self._logs.get(key)
            if log is None or not log.events:
                return None
            if operation in log.operations:
                return State(log.version, len(log.events))
            log.operations.add(operation)
            for name, event in log.events.items():
                if event.time_s <= at_s:
                    log.events[name] = replace(event, weight=decayed(event.weight, factor))
            return log.change()

    def erase(self, key: Key, at_s: float) -> bool:
        """Erase a user."""
        with self._lock:
            log = self._logs.pop(key, None)
            if log is None:
                return False
            stone = self._stones.setdefault(owner_digest(self._salt, key), _Stone())
            stone.erased_s = max(stone.erased_s, at_s) if stone.version else at_s
            stone.version = log.version + 1
            stone.events.update(event_digest(self._salt, key, name) for name in log.events)
            return True

    def remember(self, vectors: Iterable[tuple[Key, int, str, bytes]]) -> None:
        """Keep vectors of users that still have that version."""
        with self._lock:
            for key, version, basis, vector in vectors:
                log = self._logs.get(key)
                if log is not None and log.version == version:
                    log.basis, log.vector = basis, vector

    def reencode(self, key: Key, encoder: str, evidence: Sequence[tuple[str, bytes]]) -> None:
        """Replace the evidence of events that still exist."""
        with self._lock:
            log = self._logs.get(key)
            for name, data in evidence if log else ():
                if log and name in log.events:
                    log.events[name] = replace(log.events[name], encoder=encoder, evidence=data)

    def keys(self, after: Key | None = None, limit: int = 1000) -> list[Key]:
        """Return users that have a log, in order."""
        with self._lock:
            keys = sorted(self._logs)
        start = 0 if after is None else bisect.bisect_right(keys, after)
        return keys[start : start + limit]

    def records(self, keys: Sequence[Key]) -> list[Record]:
        """Return all of some users."""
        with self._lock:
            return [self._record(key) for key in keys]

    def _record(self, key: Key) -> Record:
        log = self._logs.get(key)
        if log is None:
            return Record(key, 0, ())
        return Record(key, log.version, self._events(key, raw=True), tuple(sorted(log.operations)))

    def tombstones(self) -> Iterator[Tombstone]:
        """Yield what is left of erased users and forgotten events."""
        with self._lock:
            stones = [
                Tombstone(owner, stone.version, stone.erased_s, tuple(sorted(stone.events)))
                for owner, stone in sorted(self._stones.items())
            ]
        yield from stones

    def restore(self, records: Iterable[Record], tombstones: Iterable[Tombstone]) -> None:
        """Put users and tombstones into a store that has none of them."""
        with self._lock:
            logs, stones = dict(self._logs), deepcopy(self._stones)
            before = {owner_digest(self._salt, key) for key in logs} | set(stones)
            for record in records:
                if record.key in logs or owner_digest(self._salt, record.key) in before:
                    raise here(record.key)
                if record.version:
                    events = {event.event_id: event for event in record.events}
                    logs[record.key] = _Log(record.version, events, set(record.operations))
            for stone in tombstones:
                if stone.owner in before or stone.owner in stones:
                    raise here_erased(stone.owner)
                stones[stone.owner] = _Stone(stone.version, stone.erased_s, set(stone.events))
            self._logs, self._stones = logs, stones

    def setting(self, name: str, default: str) -> str:
        """Return a named string, setting it where it has no value."""
        with self._lock:
            if default:
                self._settings.setdefault(name, default)
            return self._settings.get(name, "")

    def compact(self) -> None:
        """Nothing to do: what is erased is gone at once."""

    def check(self) -> None:
        """Nothing to do: memory answers."""

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._logs, self._stones = {}, {}
