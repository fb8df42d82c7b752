"""One SQLite file, shared by the threads and processes of a machine."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from raypref.errors import CorruptError, MismatchError
from raypref.serve.stores.base import StoreDown

APPLICATION = 0x52507266
SCHEMA_VERSION = 1

# A user is a row by the digest of who it is. Erased, the row loses its name and stays as the tombstone.
# Raw items come last in a row: SQLite reads only as far as the columns that are asked for.
SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL UNIQUE,
    tenant TEXT,
    user TEXT,
    version INTEGER NOT NULL,
    shots INTEGER NOT NULL DEFAULT 0,
    erased_version INTEGER NOT NULL DEFAULT 0,
    erased_s REAL NOT NULL DEFAULT 0,
    basis TEXT NOT NULL DEFAULT '',
    vector BLOB NOT NULL DEFAULT x''
);
CREATE INDEX users_by_key ON users (tenant, user) WHERE tenant IS NOT NULL;
CREATE TABLE events (
    owner TEXT NOT NULL,
    event_id TEXT NOT NULL,
    time_s REAL NOT NULL,
    weight REAL NOT NULL,
    encoder TEXT NOT NULL,
    evidence BLOB NOT NULL,
    chosen BLOB NOT NULL,
    rejected BLOB NOT NULL,
    PRIMARY KEY (owner, event_id)
);
CREATE TABLE operations (
    owner TEXT NOT NULL, operation TEXT NOT NULL, PRIMARY KEY (owner, operation)
) WITHOUT ROWID;
CREATE TABLE gone (owner TEXT NOT NULL, event TEXT NOT NULL, PRIMARY KEY (owner, event)) WITHOUT ROWID;
"""

NOT_OURS = (
    sqlite3.ProgrammingError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.NotSupportedError,
)


class SQLiteFile:
    """Connections to the file, each used by one thread at a time, and its transactions."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Open the file, or create it, readable by its owner only.

        Raises:
            StoreDown: it cannot be opened or stays locked.
            CorruptError: it is damaged.
            MismatchError: a newer raypref, or another program, made it.
        """
        self.path = path.absolute()
        self._timeout_s = timeout_s
        self._idle: deque[sqlite3.Connection] = deque()
        self._writer = threading.Lock()
        try:
            self._create()
            self._prepare()
        except OSError as error:
            raise StoreDown(f"{self.path}: cannot be opened ({error}). Check the folder.") from error
        except sqlite3.DatabaseError as error:
            if _code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise CorruptError(f"{self.path}: is damaged ({error}). Restore it from a copy.") from error
            raise self._down(error) from error

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _prepare(self) -> None:
        db = self._connect()
        try:
            # In this order: whoever sees tables that another start has just committed sees whose they are.
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            if tables and application != APPLICATION:
                raise MismatchError(f"{self.path}: is another program's database. Name another file.")
            self._patiently(db, "PRAGMA journal_mode = WAL")
            self._patiently(db, "BEGIN IMMEDIATE")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise MismatchError(
                    f"{self.path}: store version {version}, this raypref reads {SCHEMA_VERSION}; install the "
                    "raypref that wrote it, or a newer one."
                )
            if not version:
                for statement in SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        self._idle.append(db)

    def _connect(self) -> sqlite3.Connection:
        # Never "create": a file that was taken away must be missed, not replaced by an empty one.
        db = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA synchronous = FULL")
        return db

    def _patiently(self, db: sqlite3.Connection, statement: str) -> None:
        """Run a statement that takes the write lock.

        SQLite's own waiting grows to steps of 100 ms, and it does not wait at all for some locks.
        """
        deadline = time.monotonic() + self._timeout_s
        db.execute("PRAGMA busy_timeout = 0")
        while True:
            try:
                db.execute(statement).fetchall()
                break
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.0002, 0.002))
        db.execute(f"PRAGMA busy_timeout = {round(self._timeout_s * 1000)}")

    def _down(self, error: sqlite3.Error) -> StoreDown:
        return StoreDown(
            f"{self.path}: {error}. Check the disk's space and health, and what else holds the file."
        )

    @contextmanager
    def _connection(self) -> Generator[sqlite3.Connection]:
        db = None
        try:
            db = self._idle.pop() if self._idle else self._connect()
            yield db
        except NOT_OURS:
            raise
        except sqlite3.Error as error:
            if db is not None:
                db.close()
                db = None
            raise self._down(error) from error
        finally:
            if db is not None:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                self._idle.append(db)

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """Yield a connection that sees one moment; StoreDown where the file does not answer."""
        with self._connection() as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def writing(self, durable: bool = True) -> Generator[sqlite3.Connection]:
        """Yield a connection in a transaction, committed when the block ends well.

        Args:
            durable: wait until the disk has it; otherwise the commit may be lost with the machine's power.
        """
        if not self._writer.acquire(timeout=self._timeout_s):
            raise StoreDown(f"{self.path}: this process's other writes took longer than {self._timeout_s} s.")
        try:
            with self._connection() as db:
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._patiently(db, "BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
        finally:
            self._writer.release()

    def compact(self) -> None:
        """Rewrite the file from what is alive and empty the write-ahead log.

        Raises:
            StoreDown: another process read or wrote all the while; nothing is lost, do it again.
        """
        with self._writer, self._connection() as db:
            db.execute("PRAGMA synchronous = FULL")
            self._patiently(db, "VACUUM")
            (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise StoreDown(
                    f"{self.path}: is in use, so its write-ahead log could not be emptied. Try again."
                )

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()


def _code(error: sqlite3.Error) -> int:
    """Return the primary code of an error of SQLite."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
