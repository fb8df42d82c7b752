"""What all stores decide alike: what becomes of a write, and what a decayed weight is."""

from __future__ import annotations

import secrets
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from raypref.errors import InputError
from raypref.serve.stores.base import Event, Key, State, Write, Written, owner_digest


@dataclass
class Standing:
    """What decides about a user's writes; `judge` keeps it up to date."""

    version: int = 0
    shots: int = 0
    erased_s: float | None = None
    """When the user was last erased; None where never."""
    raw: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    """Chosen and rejected of the log's events, at least of those that the writes name."""
    gone: set[str] = field(default_factory=set)
    """Ids of events that were erased or forgotten, at least of those that the writes name."""


def draw_salt() -> str:
    """Return a new store's salt, 64 hexadecimal digits."""
    return secrets.token_hex(32)


class Salted(ABC):
    """A store that calls users by digests, under a salt that it draws at first use."""

    _drawn_salt = ""

    @abstractmethod
    def setting(self, name: str, default: str) -> str:
        """Return a named string kept with the store; see `Store.setting`."""

    @property
    def _salt(self) -> str:
        self._drawn_salt = self._drawn_salt or self.setting("salt", draw_salt())
        return self._drawn_salt

    def _owner(self, key: Key) -> str:
        return owner_digest(self._salt, key)


def judge(write: Write, standing: Standing, limit: int) -> tuple[Written, list[Event]]:
    """Return what becomes of a write and the events that are new.

    Every new event counts as one change of the log, so that a user's version is the same however comparisons
    were grouped.
    """
    fresh: dict[str, Event] = {}
    conflicts: dict[str, None] = {}
    duplicates = erased = 0
    for event in write.events:
        items = (event.chosen, event.rejected)
        twin = fresh.get(event.event_id)
        known = standing.raw.get(event.event_id) if twin is None else (twin.chosen, twin.rejected)
        if known is not None:
            duplicates += known == items
            if known != items:
                conflicts[event.event_id] = None
        elif event.event_id in standing.gone or (
            standing.erased_s is not None and event.time_s <= standing.erased_s
        ):
            erased += 1
        else:
            fresh[event.event_id] = event
    if conflicts:
        state = State(standing.version, standing.shots)
        return Written("conflict", state, conflicts=tuple(conflicts)), []
    if fresh and standing.shots + len(fresh) > limit:
        return Written("full", State(standing.version, standing.shots)), []
    standing.version += len(fresh)
    standing.shots += len(fresh)
    standing.raw.update((name, (event.chosen, event.rejected)) for name, event in fresh.items())
    state = State(standing.version, standing.shots)
    return Written("applied", state, len(fresh), duplicates, erased), list(fresh.values())


def decayed(weight: float, factor: float) -> float:
    """Return a weight after decay; it stays above 0 however often that happens."""
    return max(weight * factor, sys.float_info.min)


def here(key: Key) -> InputError:
    """Return the refusal of `restore`."""
    return InputError(
        f"User {key.user} of tenant {key.tenant!r} is in the store already; import into a new store."
    )


def here_erased(owner: str) -> InputError:
    """Return the refusal of `restore` for a tombstone."""
    return InputError(
        f"A tombstone of {owner} comes in, but that user is here already; import into a new store."
    )
