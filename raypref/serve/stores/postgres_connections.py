"""Connections to PostgreSQL that answer in time or are given up, and the schema there."""

from __future__ import annotations

import math
import select
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo, rows

from raypref.errors import ConfigError, MismatchError
from raypref.serve.stores.base import StoreDown

SCHEMA_VERSION = 1
T = TypeVar("T")

# A user is a row by the digest of who it is. Erased, the row loses its name and stays as the tombstone; so it
# is always there to be locked. Ids compare by code point (COLLATE "C").
SCHEMA = """
CREATE SCHEMA IF NOT EXISTS raypref;
CREATE TABLE IF NOT EXISTS raypref.settings (name text COLLATE "C" PRIMARY KEY, value text NOT NULL);
CREATE TABLE IF NOT EXISTS raypref.users (
    owner text COLLATE "C" PRIMARY KEY,
    tenant text COLLATE "C",
    name text COLLATE "C",
    version bigint NOT NULL DEFAULT 0,
    shots bigint NOT NULL DEFAULT 0,
    erased_version bigint NOT NULL DEFAULT 0,
    erased_s float8 NOT NULL DEFAULT 0,
    basis text NOT NULL DEFAULT '',
    vector bytea NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS users_by_key ON raypref.users (tenant, name) WHERE tenant IS NOT NULL;
CREATE TABLE IF NOT EXISTS raypref.events (
    owner text COLLATE "C",
    event_id text COLLATE "C",
    time_s float8 NOT NULL,
    weight float8 NOT NULL,
    chosen bytea NOT NULL,
    rejected bytea NOT NULL,
    encoder text NOT NULL,
    evidence bytea NOT NULL,
    PRIMARY KEY (owner, event_id)
);
CREATE TABLE IF NOT EXISTS raypref.operations (
    owner text COLLATE "C", operation text COLLATE "C", PRIMARY KEY (owner, operation)
);
CREATE TABLE IF NOT EXISTS raypref.gone (
    owner text COLLATE "C", event text COLLATE "C", PRIMARY KEY (owner, event)
);
"""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that gives up at a deadline, also where the server hangs while its machine answers.

    Neither `statement_timeout`, which the server keeps, nor TCP's own timeouts do that.
    """

    deadline = math.inf

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Wait for the server, until the deadline."""
        return super().wait(self._until_deadline(gen), *args, **kwargs)

    def _until_deadline(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                # psycopg wakes up every 0.1 s and then sends that nothing is ready.
                ready = yield wanted
                if not ready and time.monotonic() > self.deadline:
                    raise psycopg.OperationalError("no answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


class Connections:
    """Idle connections, as many as there are threads, and transactions on them."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Connect, check the server's settings and create the schema where it is missing.

        Raises:
            ConfigError: the url is malformed, or the server would lose what it acknowledges.
            StoreDown: the server does not answer, or refuses.
            MismatchError: a newer raypref made the schema.
        """
        self._url = url
        self._timeout_s = timeout_s
        self._limit = f"SET statement_timeout = {round(timeout_s * 1000)}".encode()
        self._idle: deque[Connection] = deque()
        try:
            named = conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise ConfigError(f"The store's postgresql url is malformed: {error}.") from error
        # Never the url itself: it may hold a password.
        self._where = f"PostgreSQL at {named.get('host', 'its socket')}:{named.get('port', 5432)}"
        with self.lent() as db:
            for name in ("fsync", "synchronous_commit"):
                if db.execute("SELECT current_setting(%s)", (name,)).fetchall() == [("off",)]:
                    raise ConfigError(
                        f"{self._where} runs with {name}=off and would lose acknowledged comparisons: "
                        f"set {name} = on in postgresql.conf and reload."
                    )
        self._prepare()

    def _prepare(self) -> None:
        with self.writing(patient=True) as db:
            # Of several services that start at once, one creates the schema and the others wait.
            db.execute("SELECT pg_advisory_xact_lock(hashtext('raypref.schema'))")
            (there,) = db.execute("SELECT to_regclass('raypref.settings') IS NOT NULL").fetchall()[0]
            if not there:
                db.execute(SCHEMA)
                db.execute(
                    "INSERT INTO raypref.settings VALUES ('store_version', %s)", (str(SCHEMA_VERSION),)
                )
            found = db.execute("SELECT value FROM raypref.settings WHERE name = 'store_version'").fetchall()
            version = int(found[0][0]) if found else 0
            if version != SCHEMA_VERSION:
                raise MismatchError(
                    f"{self._where}: store version {version}, this raypref reads {SCHEMA_VERSION}; install "
                    "the raypref that wrote it."
                )

    def _connect(self, deadline: float) -> Connection:
        db = Connection.connect(
            self._url,
            autocommit=True,
            row_factory=rows.tuple_row,
            connect_timeout=math.ceil(self._timeout_s),
            application_name="raypref",
        )
        db.deadline = deadline
        db.execute(self._limit)
        return db

    def _take(self, deadline: float) -> Connection:
        while self._idle:
            db = self._idle.pop()
            # What an idle connection has to say is that the server has closed it.
            poll = select.poll()
            poll.register(db.fileno(), select.POLLIN)
            if not poll.poll(0):
                db.deadline = deadline
                return db
            db.close()
        return self._connect(deadline)

    @contextmanager
    def lent(self, patient: bool = False) -> Generator[Connection]:
        """Yield a connection outside of any transaction.

        Args:
            patient: wait as long as it takes.

        Raises:
            StoreDown: the server failed or did not answer in time.
        """
        deadline = math.inf if patient else time.monotonic() + self._timeout_s
        db = None
        try:
            db = self._take(deadline)
            if patient:
                db.execute("SET statement_timeout = 0")
            yield db
            if patient:
                db.execute(self._limit)
            self._idle.append(db)
        except BaseException as error:
            if db is not None:
                db.close()
            if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)):
                raise StoreDown(f"{self._where}: {error}. Check that it runs and can be reached.") from error
            raise

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """Yield a connection that sees one moment."""
        with self.lent() as db:
            db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def writing(self, durable: bool = True, patient: bool = False) -> Generator[Connection]:
        """Yield a connection in a transaction, committed when the block ends well.

        Args:
            durable: wait until the disk has it.
            patient: wait as long as it takes.
        """
        with self.lent(patient) as db:
            db.execute("BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit = off")
            yield db
            db.execute("COMMIT")

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()
