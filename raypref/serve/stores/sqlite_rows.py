"""Rows of the SQLite store, read and written within a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from raypref.serve.stores.base import Event, Key, Record, State
from raypref.serve.stores.rules import Standing

EVENT = "event_id, time_s, weight, chosen, rejected, encoder, evidence"
LEAN_EVENT = "event_id, time_s, weight, x'', x'', encoder, evidence"


def standing(db: sqlite3.Connection, owner: str) -> Standing:
    """Return how a user stands, without its events."""
    row = db.execute(
        "SELECT version, shots, CASE WHEN erased_version THEN erased_s END FROM users WHERE owner = ?",
        (owner,),
    ).fetchone()
    return Standing(*row) if row else Standing()


def events(db: sqlite3.Connection, owner: str, raw: bool) -> tuple[Event, ...]:
    """Return a user's events in the order of their ids."""
    columns = EVENT if raw else LEAN_EVENT
    rows = db.execute(f"SELECT {columns} FROM events WHERE owner = ? ORDER BY event_id", (owner,))
    return tuple(Event(*row) for row in rows)


def insert_events(db: sqlite3.Connection, owner: str, events: Iterable[Event]) -> None:
    """Add events to a user."""
    db.executemany(
        f"INSERT INTO events (owner, {EVENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(owner, *vars(event).values()) for event in events],
    )


def gone(db: sqlite3.Connection, owner: str) -> tuple[str, ...]:
    """Return the digests of a user's events that are gone, sorted."""
    return tuple(
        event for (event,) in db.execute("SELECT event FROM gone WHERE owner = ? ORDER BY event", (owner,))
    )


def change(db: sqlite3.Connection, owner: str, shots: int) -> State:
    """Count a change of the log; the vector is no longer that of this version."""
    row = db.execute(
        "UPDATE users SET version = version + 1, shots = shots + ?, basis = '', vector = x'' WHERE owner = ? "
        "RETURNING version, shots",
        (shots, owner),
    ).fetchall()[0]
    return State(*row)


def record(db: sqlite3.Connection, owner: str, key: Key) -> Record:
    """Return all of a user."""
    row = db.execute("SELECT version FROM users WHERE owner = ? AND tenant IS NOT NULL", (owner,)).fetchone()
    if row is None:
        return Record(key, 0, ())
    names = db.execute("SELECT operation FROM operations WHERE owner = ? ORDER BY operation", (owner,))
    return Record(key, row[0], events(db, owner, raw=True), tuple(name for (name,) in names))
