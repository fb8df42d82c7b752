"""What clients keep for themselves between rounds: a table that moves with them and that no server reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raypref.errors import CorruptError

FIRST = -1
"""The round of a client that has taken part in none."""


class RowsTable:
    """Named tensors by client and round, in a SQLite file for each bucket of users.

    A client's entries of the round it last took part in and of the one it is in are kept, so a round that was
    never closed leaves no trace. A bucket has one writer at a time: the process that carries its clients.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the files in a folder, which is made where there is none."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[int, sqlite3.Connection] = {}

    def read(self, bucket: int, client: int, round: int) -> dict[str, Tensor]:
        """Return what a client kept of a round.

        Raises:
            CorruptError: there is no such entry, though the server counted the client in that round, or it
                does not parse.
        """
        found = self._file(bucket).execute(
            "SELECT kept FROM clients WHERE client = ? AND round = ?", (client, round)
        )
        row = found.fetchone()
        if row is None:
            raise CorruptError(f"{self._path(bucket)}: nothing of client {client} after round {round}.")
        try:
            return load(row[0])
        except SafetensorError as error:
            raise CorruptError(f"{self._path(bucket)}: client {client} does not parse ({error}).") from error

    def write(self, bucket: int, client: int, since: int, round: int, kept: Mapping[str, Tensor]) -> None:
        """Keep what a client has after a round, durably, beside what it had after `since`; drop all else."""
        file = self._file(bucket)
        blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()})
        with file:
            file.execute("DELETE FROM clients WHERE client = ? AND round <> ?", (client, since))
            file.execute("INSERT INTO clients VALUES (?, ?, ?)", (client, round, blob))

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"bucket-{bucket:05d}.sqlite"

    def _file(self, bucket: int) -> sqlite3.Connection:
        if bucket not in self._open:
            file = sqlite3.connect(self._path(bucket))
            # One write through to the disk an entry; no memory shared with other processes, so that the
            # folder may be on a shared file system.
            for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
                file.execute(f"PRAGMA {setting}")
            with file:
                file.execute(
                    "CREATE TABLE IF NOT EXISTS clients (client INTEGER, round INTEGER, kept BLOB NOT NULL, "
                    "PRIMARY KEY (client, round)) WITHOUT ROWID"
                )
            self._open[bucket] = file
        return self._open[bucket]
