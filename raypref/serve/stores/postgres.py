"""Users in PostgreSQL: for many machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from raypref.serve.stores import postgres_rows as rows
from raypref.serve.stores.base import (
    Event,
    Key,
    Record,
    State,
    Tombstone,
    Write,
    Written,
    event_digest,
)
from raypref.serve.stores.postgres_connections import Connections
from raypref.serve.stores.rules import Salted, decayed, here, here_erased, judge

PAGE = 1000


class PostgresStore(Salted):
    """A store in PostgreSQL, in its schema `raypref`."""

    kind = "postgresql"
    durable = "Committed and flushed to the server's disk (fsync and synchronous_commit are on)."
    nodes: Literal["one", "many"] = "many"

    def __init__(self, url: str, timeout_s: float) -> None:
        """Connect, and create the schema where it is missing.

        Raises:
            ConfigError: the url is malformed, or the server would lose what it acknowledges.
            StoreDown: the server does not answer.
            MismatchError: a newer raypref made the schema.
        """
        self._connections = Connections(url, timeout_s)

    def read(self, keys: Sequence[Key]) -> list[State]:
        """Return the states of users."""
        owners = [self._owner(key) for key in keys]
        with self._connections.lent() as db:
            found = rows.fetch(
                db,
                "SELECT owner, version, shots, basis, vector FROM raypref.users WHERE owner = ANY(%s)",
                owners,
            )
        states = {row[0]: State(*row[1:]) for row in found}
        return [states.get(owner, State()) for owner in owners]

    def events(self, keys: Sequence[Key], raw: bool = False) -> list[tuple[int, tuple[Event, ...]]]:
        """Return version and events of each user."""
        owners = [self._owner(key) for key in keys]
        with self._connections.reading() as db:
            versions = dict(
                rows.fetch(db, "SELECT owner, version FROM raypref.users WHERE owner = ANY(%s)", owners)
            )
            events = rows.events(db, owners, raw)
        return [(versions.get(owner, 0), tuple(events.get(owner, ()))) for owner in owners]

    def append(self, writes: Sequence[Write], limit: int) -> list[Written]:
        """Add comparisons in one transaction."""
        owners = [self._owner(write.key) for write in writes]
        events = {
            (owner, event.event_id): event_digest(self._salt, write.key, event.event_id)
            for owner, write in zip(owners, writes, strict=True)
            for event in write.events
        }
        with self._connections.writing() as db:
            standings = rows.lock(db, owners)
            rows.recall(db, standings, events)
            written: list[Written] = []
            changed: dict[str, Key] = {}
            fresh: list[tuple[str, Event]] = []
            for owner, write in zip(owners, writes, strict=True):
                one, new = judge(write, standings[owner], limit)
                written.append(one)
                fresh += [(owner, event) for event in new]
                if new:
                    changed[owner] = write.key
            if changed:
                db.cursor().executemany(
                    "UPDATE raypref.users SET tenant = %s, name = %s, version = %s, shots = %s, basis = '', "
                    "vector = '' WHERE owner = %s",
                    [
                        (*key, standings[owner].version, standings[owner].shots, owner)
                        for owner, key in changed.items()
                    ],
                )
                rows.insert_events(db, fresh)
        return written

    def forget(self, key: Key, event_id: str) -> State | None:
        """Remove one comparison."""
        owner = self._owner(key)
        with self._connections.writing() as db:
            rows.lock(db, [owner])
            if not db.execute(
                "DELETE FROM raypref.events WHERE owner = %s AND event_id = %s", (owner, event_id)
            ).rowcount:
                return None
            db.execute(
                "INSERT INTO raypref.gone VALUES (%s, %s)", (owner, event_digest(self._salt, key, event_id))
            )
            return rows.change(db, owner, -1)

    def decay(self, key: Key, factor: float, operation: str, at_s: float) -> State | None:
        """Multiply the weights of events up to `at_s`, once an operation."""
        owner = self._owner(key)
        with self._connections.writing() as db:
            standing = rows.lock(db, [owner])[owner]
            if not standing.shots:
                return None
            if not db.execute(
                "INSERT INTO raypref.operations VALUES (%s, %s) ON CONFLICT DO NOTHING", (owner, operation)
            ).rowcount:
                return State(standing.version, standing.shots)
            # Multiplied here and not there: PostgreSQL raises an error where a product underflows.
            weights = rows.fetch(
                db,
                "SELECT event_id, weight FROM raypref.events WHERE owner = %s AND time_s <= %s",
                owner,
                at_s,
            )
            db.cursor().executemany(
                "UPDATE raypref.events SET weight = %s WHERE owner = %s AND event_id = %s",
                [(decayed(weight, factor), owner, name) for name, weight in weights],
            )
            return rows.change(db, owner, 0)

    def erase(self, key: Key, at_s: float) -> bool:
        """Erase a user."""
        owner = self._owner(key)
        with self._connections.writing() as db:
            rows.lock(db, [owner])
            if not rows.fetch(
                db, "SELECT 1 FROM raypref.users WHERE owner = %s AND tenant IS NOT NULL", owner
            ):
                return False
            names = rows.fetch(db, "DELETE FROM raypref.events WHERE owner = %s RETURNING event_id", owner)
            db.cursor().executemany(
                "INSERT INTO raypref.gone VALUES (%s, %s)",
                [(owner, event_digest(self._salt, key, name)) for (name,) in names],
            )
            db.execute("DELETE FROM raypref.operations WHERE owner = %s", (owner,))
            db.execute(
                "UPDATE raypref.users SET tenant = NULL, name = NULL, version = version + 1, shots = 0, "
                "basis = '', vector = '', erased_version = version + 1, erased_s = "
                "CASE WHEN erased_version > 0 THEN greatest(erased_s, %(at_s)s::float8) ELSE %(at_s)s END "
                "WHERE owner = %(owner)s",
                {"at_s": at_s, "owner": owner},
            )
            return True

    def remember(self, vectors: Iterable[tuple[Key, int, str, bytes]]) -> None:
        """Keep vectors of users that still have that version."""
        new = [(self._owner(key), version, basis, vector) for key, version, basis, vector in vectors]
        if not new:
            return
        # Users whose row is locked are about to change, or get another's vector: no reason to wait for them.
        with self._connections.writing(durable=False) as db:
            db.execute(
                "WITH new AS (SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::bytea[]) "
                "AS new (owner, version, basis, vector)), "
                "free AS (SELECT owner FROM raypref.users JOIN new USING (owner, version) "
                "WHERE tenant IS NOT NULL FOR UPDATE OF users SKIP LOCKED) "
                "UPDATE raypref.users SET basis = new.basis, vector = new.vector "
                "FROM new JOIN free USING (owner) "
                "WHERE users.owner = new.owner",
                [list(column) for column in zip(*new, strict=True)],
            )

    def reencode(self, key: Key, encoder: str, evidence: Sequence[tuple[str, bytes]]) -> None:
        """Replace the evidence of events that still exist."""
        owner = self._owner(key)
        with self._connections.writing(durable=False) as db:
            db.execute("SELECT 1 FROM raypref.users WHERE owner = %s FOR UPDATE", (owner,))
            db.execute(
                "UPDATE raypref.events SET encoder = %s, evidence = new.evidence "
                "FROM unnest(%s::text[], %s::bytea[]) AS new (event_id, evidence) "
                "WHERE owner = %s AND events.event_id = new.event_id",
                (encoder, [name for name, _ in evidence], [data for _, data in evidence], owner),
            )

    def keys(self, after: Key | None = None, limit: int = 1000) -> list[Key]:
        """Return users that have a log, in order."""
        with self._connections.lent() as db:
            found = rows.fetch(
                db,
                "SELECT tenant, name FROM raypref.users WHERE tenant IS NOT NULL "
                "AND (tenant, name) > (%s, %s) ORDER BY tenant, name LIMIT %s",
                *(after or ("", "")),
                limit,
            )
        return [Key(*row) for row in found]

    def records(self, keys: Sequence[Key]) -> list[Record]:
        """Return all of some users."""
        owners = [self._owner(key) for key in keys]
        with self._connections.reading() as db:
            versions = dict(
                rows.fetch(
                    db,
                    "SELECT owner, version FROM raypref.users WHERE owner = ANY(%s) AND tenant IS NOT NULL",
                    owners,
                )
            )
            events = rows.events(db, owners, raw=True)
            operations = rows.grouped(
                db,
                "SELECT owner, operation FROM raypref.operations WHERE owner = ANY(%s) ORDER BY 1, 2",
                owners,
            )
        return [
            Record(key, versions.get(owner, 0), tuple(events.get(owner, ())), operations.get(owner, ()))
            for key, owner in zip(keys, owners, strict=True)
        ]

    def tombstones(self) -> Iterator[Tombstone]:
        """Yield what is left of erased users and forgotten events."""
        page, last = PAGE, ""
        while page == PAGE:
            # Page by page, so that no transaction stays open while the caller works.
            with self._connections.reading() as db:
                found = rows.fetch(
                    db,
                    "SELECT owner, erased_version, erased_s FROM raypref.users WHERE owner > %s AND "
                    "(erased_version > 0 OR "
                    "EXISTS (SELECT 1 FROM raypref.gone WHERE gone.owner = users.owner)) "
                    "ORDER BY owner LIMIT %s",
                    last,
                    PAGE,
                )
                gone = rows.grouped(
                    db,
                    "SELECT owner, event FROM raypref.gone WHERE owner = ANY(%s) ORDER BY 1, 2",
                    [row[0] for row in found],
                )
            for owner, version, erased_s in found:
                yield Tombstone(owner, version, erased_s, gone.get(owner, ()))
            page = len(found)
            last = found[-1][0] if found else last

    def restore(self, records: Iterable[Record], tombstones: Iterable[Tombstone]) -> None:
        """Put users and tombstones into a store that has none of them, all or none."""
        self._owner(Key("", ""))
        with self._connections.writing(patient=True) as db:
            for record in records:
                if not rows.restore_user(db, self._owner(record.key), record):
                    raise here(record.key)
            for stone in tombstones:
                if not rows.restore_tombstone(db, stone):
                    raise here_erased(stone.owner)

    def setting(self, name: str, default: str) -> str:
        """Return a named string, setting it where it has no value."""
        query = "SELECT value FROM raypref.settings WHERE name = %s"
        with self._connections.lent() as db:
            found = rows.fetch(db, query, name)
            if not found and default:
                db.execute(
                    "INSERT INTO raypref.settings VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, default)
                )
                found = rows.fetch(db, query, name)
        return found[0][0] if found else ""

    def compact(self) -> None:
        """Rewrite the tables; its write-ahead log and backups are the server's to forget."""
        with self._connections.lent(patient=True) as db:
            for table in ("events", "users", "operations", "gone"):
                db.execute(f"VACUUM (FULL) raypref.{table}")

    def check(self) -> None:
        """Raise StoreDown unless the server answers."""
        with self._connections.lent() as db:
            rows.fetch(db, "SELECT 1 FROM raypref.settings LIMIT 1")

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()
