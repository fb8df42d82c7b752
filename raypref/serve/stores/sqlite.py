"""Users in one SQLite file: the default, for all processes of one machine."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from raypref.serve.stores import sqlite_rows as rows
from raypref.serve.stores.base import (
    Event,
    Key,
    Record,
    State,
    StoreDown,
    Tombstone,
    Write,
    Written,
    event_digest,
)
from raypref.serve.stores.rules import Salted, decayed, here, here_erased, judge
from raypref.serve.stores.sqlite_file import SQLiteFile

PAGE = 1000


class SQLiteStore(Salted):
    """A store in a file, in SQLite's write-ahead mode."""

    kind = "sqlite"
    durable = "Committed and synced to this machine's disk: survives a crash of processes and of the machine."
    nodes: Literal["one", "many"] = "one"

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Open the file, or create it.

        Raises:
            StoreDown: the file cannot be opened or stays locked.
            CorruptError: it is damaged.
            MismatchError: a newer raypref, or another program, made it.
        """
        self._file = SQLiteFile(path, timeout_s)

    def read(self, keys: Sequence[Key]) -> list[State]:
        """Return the states of users."""
        owners = json.dumps([self._owner(key) for key in keys])
        with self._file.reading() as db:
            found = db.execute(
                "SELECT coalesce(version, 0), coalesce(shots, 0), coalesce(basis, ''), coalesce(vector, x'') "
                "FROM json_each(?) LEFT JOIN users ON owner = value ORDER BY key",
                (owners,),
            )
            return list(map(State._make, found))

    def events(self, keys: Sequence[Key], raw: bool = False) -> list[tuple[int, tuple[Event, ...]]]:
        """Return version and events of each user."""
        owners = [self._owner(key) for key in keys]
        with self._file.reading() as db:
            return [(rows.standing(db, owner).version, rows.events(db, owner, raw)) for owner in owners]

    def append(self, writes: Sequence[Write], limit: int) -> list[Written]:
        """Add comparisons in one transaction."""
        owners = [self._owner(write.key) for write in writes]
        with self._file.writing() as db:
            return [
                self._append(db, owner, write, limit) for owner, write in zip(owners, writes, strict=True)
            ]

    def _append(self, db: sqlite3.Connection, owner: str, write: Write, limit: int) -> Written:
        standing = rows.standing(db, owner)
        if standing.version:
            names = {
                event_digest(self._salt, write.key, event.event_id): event.event_id for event in write.events
            }
            gone = db.execute(
                "SELECT event FROM gone WHERE owner = ? AND event IN (SELECT value FROM json_each(?))",
                (owner, json.dumps(list(names))),
            )
            standing.gone = {names[digest] for (digest,) in gone}
            known = db.execute(
                "SELECT event_id, chosen, rejected FROM events "
                "WHERE owner = ? AND event_id IN (SELECT value FROM json_each(?))",
                (owner, json.dumps(list(names.values()))),
            )
            standing.raw = {name: (chosen, rejected) for name, chosen, rejected in known}
        written, fresh = judge(write, standing, limit)
        if fresh:
            db.execute(
                "INSERT INTO users (owner, tenant, user, version, shots) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (owner) DO UPDATE SET tenant = excluded.tenant, user = excluded.user, "
                "version = excluded.version, shots = excluded.shots, basis = '', vector = x''",
                (owner, *write.key, standing.version, standing.shots),
            )
            rows.insert_events(db, owner, fresh)
        return written

    def forget(self, key: Key, event_id: str) -> State | None:
        """Remove one comparison."""
        owner = self._owner(key)
        with self._file.writing() as db:
            if not db.execute(
                "DELETE FROM events WHERE owner = ? AND event_id = ?", (owner, event_id)
            ).rowcount:
                return None
            db.execute("INSERT INTO gone VALUES (?, ?)", (owner, event_digest(self._salt, key, event_id)))
            return rows.change(db, owner, -1)

    def decay(self, key: Key, factor: float, operation: str, at_s: float) -> State | None:
        """Multiply the weights of events up to `at_s`, once an operation."""
        owner = self._owner(key)
        with self._file.writing() as db:
            standing = rows.standing(db, owner)
            if not standing.shots:
                return None
            added = db.execute("INSERT OR IGNORE INTO operations VALUES (?, ?)", (owner, operation))
            if not added.rowcount:
                return State(standing.version, standing.shots)
            found = db.execute(
                "SELECT event_id, weight FROM events WHERE owner = ? AND time_s <= ?", (owner, at_s)
            ).fetchall()
            db.executemany(
                "UPDATE events SET weight = ? WHERE owner = ? AND event_id = ?",
                [(decayed(weight, factor), owner, name) for name, weight in found],
            )
            return rows.change(db, owner, 0)

    def erase(self, key: Key, at_s: float) -> bool:
        """Erase a user."""
        owner = self._owner(key)
        with self._file.writing() as db:
            if not db.execute(
                "SELECT 1 FROM users WHERE owner = ? AND tenant IS NOT NULL", (owner,)
            ).fetchone():
                return False
            names = db.execute("SELECT event_id FROM events WHERE owner = ?", (owner,)).fetchall()
            db.executemany(
                "INSERT INTO gone VALUES (?, ?)",
                [(owner, event_digest(self._salt, key, name)) for (name,) in names],
            )
            db.execute("DELETE FROM events WHERE owner = ?", (owner,))
            db.execute("DELETE FROM operations WHERE owner = ?", (owner,))
            db.execute(
                "UPDATE users SET tenant = NULL, user = NULL, version = version + 1, shots = 0, basis = '', "
                "vector = x'', erased_version = version + 1, "
                "erased_s = CASE WHEN erased_version THEN max(erased_s, ?1) ELSE ?1 END WHERE owner = ?2",
                (at_s, owner),
            )
            return True

    def remember(self, vectors: Iterable[tuple[Key, int, str, bytes]]) -> None:
        """Keep vectors of users that still have that version."""
        new = [(basis, vector, self._owner(key), version) for key, version, basis, vector in vectors]
        if not new:
            return
        with self._file.writing(durable=False) as db:
            db.executemany(
                "UPDATE users SET basis = ?, vector = ? "
                "WHERE owner = ? AND version = ? AND tenant IS NOT NULL",
                new,
            )

    def reencode(self, key: Key, encoder: str, evidence: Sequence[tuple[str, bytes]]) -> None:
        """Replace the evidence of events that still exist."""
        owner = self._owner(key)
        with self._file.writing(durable=False) as db:
            db.executemany(
                "UPDATE events SET encoder = ?, evidence = ? WHERE owner = ? AND event_id = ?",
                [(encoder, data, owner, name) for name, data in evidence],
            )

    def keys(self, after: Key | None = None, limit: int = 1000) -> list[Key]:
        """Return users that have a log, in order."""
        with self._file.reading() as db:
            found = db.execute(
                "SELECT tenant, user FROM users WHERE tenant IS NOT NULL AND (tenant, user) > (?, ?) "
                "ORDER BY tenant, user LIMIT ?",
                (*(after or ("", "")), limit),
            ).fetchall()
        return [Key(*row) for row in found]

    def records(self, keys: Sequence[Key]) -> list[Record]:
        """Return all of some users."""
        owners = [self._owner(key) for key in keys]
        with self._file.reading() as db:
            return [rows.record(db, owner, key) for owner, key in zip(owners, keys, strict=True)]

    def tombstones(self) -> Iterator[Tombstone]:
        """Yield what is left of erased users and forgotten events."""
        page, last = PAGE, ""
        while page == PAGE:
            # Page by page, so that no reading transaction stays open while the caller works.
            with self._file.reading() as db:
                found = db.execute(
                    "SELECT owner, erased_version, erased_s FROM users WHERE owner > ? AND "
                    "(erased_version OR EXISTS (SELECT 1 FROM gone WHERE gone.owner = users.owner)) "
                    "ORDER BY owner LIMIT ?",
                    (last, PAGE),
                ).fetchall()
                stones = [Tombstone(*row, events=rows.gone(db, row[0])) for row in found]
            yield from stones
            page = len(stones)
            last = stones[-1].owner if stones else last

    def restore(self, records: Iterable[Record], tombstones: Iterable[Tombstone]) -> None:
        """Put users and tombstones into a store that has none of them, all or none."""
        self._owner(Key("", ""))
        with self._file.writing() as db:
            (newest,) = db.execute("SELECT coalesce(max(id), 0) FROM users").fetchone()
            for record in records:
                self._restore(db, record)
            for stone in tombstones:
                row = db.execute(
                    "SELECT id, erased_version FROM users WHERE owner = ?", (stone.owner,)
                ).fetchone()
                if (row and (row[0] <= newest or row[1])) or rows.gone(db, stone.owner):
                    raise here_erased(stone.owner)
                db.execute(
                    "INSERT INTO users (owner, version, erased_version, erased_s) VALUES (?1, ?2, ?2, ?3) "
                    "ON CONFLICT (owner) DO UPDATE SET erased_version = ?2, erased_s = ?3",
                    (stone.owner, stone.version, stone.erased_s),
                )
                db.executemany(
                    "INSERT INTO gone VALUES (?, ?)", [(stone.owner, event) for event in stone.events]
                )

    def _restore(self, db: sqlite3.Connection, record: Record) -> None:
        owner = self._owner(record.key)
        if rows.standing(db, owner).version:
            raise here(record.key)
        if record.version:
            db.execute(
                "INSERT INTO users (owner, tenant, user, version, shots) VALUES (?, ?, ?, ?, ?)",
                (owner, *record.key, record.version, len(record.events)),
            )
            rows.insert_events(db, owner, record.events)
            db.executemany(
                "INSERT INTO operations VALUES (?, ?)", [(owner, name) for name in record.operations]
            )

    def setting(self, name: str, default: str) -> str:
        """Return a named string, setting it where it has no value."""
        query = "SELECT value FROM settings WHERE name = ?"
        with self._file.reading() as db:
            row = db.execute(query, (name,)).fetchone()
        if row is None and default:
            with self._file.writing() as db:
                db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, default))
                row = db.execute(query, (name,)).fetchone()
        return row[0] if row else ""

    def compact(self) -> None:
        """Rewrite the file and empty the write-ahead log, so that nothing erased is left in them."""
        self._file.compact()

    def check(self) -> None:
        """Raise StoreDown unless the file answers."""
        with self._file.reading() as db:
            if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise StoreDown(f"{self._file.path}: has lost its tables. Restore it from a copy.")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
