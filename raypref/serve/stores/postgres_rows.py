"""Rows of the PostgreSQL store, read and written within a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg.rows import tuple_row

from raypref.serve.stores.base import Event, Record, State, Tombstone
from raypref.serve.stores.postgres_connections import Connection
from raypref.serve.stores.rules import Standing

EVENT = "event_id, time_s, weight, chosen, rejected, encoder, evidence"
LEAN_EVENT = "event_id, time_s, weight, ''::bytea, ''::bytea, encoder, evidence"


def fetch(db: Connection, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with db.cursor(binary=True, row_factory=tuple_row) as cursor:
        return cursor.execute(query.encode(), parameters).fetchall()


def grouped(db: Connection, query: str, owners: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the second column of a query by the first; the query takes owners."""
    groups: dict[str, list[str]] = {}
    for owner, name in fetch(db, query, owners):
        groups.setdefault(owner, []).append(name)
    return {owner: tuple(names) for owner, names in groups.items()}


def events(db: Connection, owners: list[str], raw: bool) -> dict[str, list[Event]]:
    """Return the events of users that have some, in the order of their ids."""
    columns = EVENT if raw else LEAN_EVENT
    query = f"SELECT owner, {columns} FROM raypref.events WHERE owner = ANY(%s) ORDER BY owner, event_id"
    groups: dict[str, list[Event]] = {}
    for owner, *fields in fetch(db, query, owners):
        groups.setdefault(owner, []).append(Event(*fields))
    return groups


def insert_events(db: Connection, events: Sequence[tuple[str, Event]]) -> None:
    """Add events to users."""
    db.cursor().executemany(
        f"INSERT INTO raypref.events (owner, {EVENT}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [(owner, *vars(event).values()) for owner, event in events],
    )


def lock(db: Connection, owners: Sequence[str]) -> dict[str, Standing]:
    """Lock users until the transaction ends, always in the same order, and return how they stand."""
    ordered = sorted(set(owners))
    db.execute(
        "INSERT INTO raypref.users (owner) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", (ordered,)
    )
    found = fetch(
        db,
        "SELECT owner, version, shots, CASE WHEN erased_version > 0 THEN erased_s END FROM raypref.users "
        "WHERE owner = ANY(%s) ORDER BY owner FOR UPDATE",
        ordered,
    )
    return {row[0]: Standing(*row[1:]) for row in found}


def recall(db: Connection, standings: dict[str, Standing], events: dict[tuple[str, str], str]) -> None:
    """Complete standings by what is known of some events, given as (owner, id) with their digests."""
    known = {place: digest for place, digest in events.items() if standings[place[0]].version}
    if not known:
        return
    owners = [owner for owner, _ in known]
    named = "JOIN unnest(%s::text[], %s::text[]) AS named (owner, event)"
    for owner, name, chosen, rejected in fetch(
        db,
        f"SELECT e.owner, e.event_id, e.chosen, e.rejected FROM raypref.events e {named} "
        "ON e.owner = named.owner AND e.event_id = named.event",
        owners,
        [name for _, name in known],
    ):
        standings[owner].raw[name] = (chosen, rejected)
    names = {(owner, digest): name for (owner, name), digest in known.items()}
    for owner, digest in fetch(
        db,
        f"SELECT g.owner, g.event FROM raypref.gone g {named} "
        "ON g.owner = named.owner AND g.event = named.event",
        owners,
        list(known.values()),
    ):
        standings[owner].gone.add(names[owner, digest])


def change(db: Connection, owner: str, shots: int) -> State:
    """Count a change of the log; the vector is no longer that of this version."""
    query = (
        "UPDATE raypref.users SET version = version + 1, shots = shots + %s, basis = '', vector = '' "
        "WHERE owner = %s RETURNING version, shots"
    )
    return State(*fetch(db, query, shots, owner)[0])


def restore_user(db: Connection, owner: str, record: Record) -> bool:
    """Add a user; False where there is one already."""
    if not record.version:
        return not lock(db, [owner])[owner].version
    if not db.execute(
        "INSERT INTO raypref.users (owner, tenant, name, version, shots) VALUES (%s, %s, %s, %s, %s) "
        "ON CONFLICT (owner) DO UPDATE SET tenant = excluded.tenant, name = excluded.name, "
        "version = excluded.version, shots = excluded.shots WHERE users.version = 0",
        (owner, *record.key, record.version, len(record.events)),
    ).rowcount:
        return False
    insert_events(db, [(owner, event) for event in record.events])
    db.cursor().executemany(
        "INSERT INTO raypref.operations VALUES (%s, %s)", [(owner, name) for name in record.operations]
    )
    return True


def restore_tombstone(db: Connection, stone: Tombstone) -> bool:
    """Add a tombstone; False where there is one, or a user whom this transaction has not restored."""
    if not db.execute(
        "INSERT INTO raypref.users (owner, version, erased_version, erased_s) "
        "VALUES (%(owner)s, %(version)s, %(version)s, %(erased_s)s) "
        "ON CONFLICT (owner) DO UPDATE SET erased_version = %(version)s, erased_s = %(erased_s)s, "
        "version = greatest(users.version, %(version)s) WHERE users.erased_version = 0 "
        # A row's xmin is the transaction that wrote it.
        "AND (users.version = 0 OR users.xmin = pg_current_xact_id()::xid) "
        "AND NOT EXISTS (SELECT 1 FROM raypref.gone WHERE gone.owner = users.owner)",
        {"owner": stone.owner, "version": stone.version, "erased_s": stone.erased_s},
    ).rowcount:
        return False
    db.cursor().executemany(
        "INSERT INTO raypref.gone VALUES (%s, %s)", [(stone.owner, event) for event in stone.events]
    )
    return True
