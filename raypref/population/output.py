"""What a population job writes: a folder of parts, each whole or absent, and a manifest that comes last.

While a job runs its parts gather in a folder beside the one it will become. A part is named by its number and
made by a pure function of the job, so a part that is made twice is the same file, and one that is there need
not be made again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from raypref import files
from raypref.errors import CorruptError, MismatchError
from raypref.population.plan import Part
from raypref.schema import METADATA_FILE, read_metadata

OUTPUT_VERSION = 1
PLAN_FILE = "plan.json"
PARTS = "parts"
"""Folder of the files that have a row for each user."""

Kind = Literal["users", "scores"]


class PartFile(BaseModel):
    """One Parquet file of an output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Path below the output's folder.")
    rows: int
    bytes: int
    sha256: str


class OutputMetadata(BaseModel):
    """The manifest of an output; a folder without it is unfinished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = OUTPUT_VERSION
    kind: Kind
    source: dict[str, Any] = Field(description="What it was made of: equal sources give equal files.")
    users: int = Field(ge=0, description="Users, each in one row of one part.")
    parts: tuple[PartFile, ...] = Field(description="Its files, in order of users in each folder.")


class Output:
    """The folder of one job, until it is finished."""

    def __init__(self, directory: Path, kind: Kind, source: dict[str, Any]) -> None:
        """Name the output; nothing is touched yet.

        Args:
            directory: what it becomes.
            kind: what it holds.
            source: what it is made of, in JSON's types.
        """
        self.directory = directory
        self.kind: Kind = kind
        self.source = source
        self.work = directory.with_name(f".{directory.name}.partial")

    @contextmanager
    def alone(self) -> Generator[None]:
        """Hold the output against other jobs of this node; waits for it."""
        with files.lock(self.directory.with_name(f".{self.directory.name}.lock")):
            yield

    def finished(self) -> OutputMetadata | None:
        """Return the manifest if this very output is there already.

        Raises:
            InputError: something else stands in its place.
        """
        files.require_ours(self.directory, METADATA_FILE)
        if not (self.directory / METADATA_FILE).is_file():
            return None
        metadata = read_metadata(self.directory, OutputMetadata)
        same = metadata.kind == self.kind and metadata.source == self.source
        return metadata if same else None

    def begin(self, folders: Sequence[str]) -> None:
        """Make the folder that parts gather in, or take up the one of an interrupted run.

        Raises:
            MismatchError: the interrupted run was of something else.
        """
        plan = self.work / PLAN_FILE
        text = json.dumps({"kind": self.kind, "source": self.source}, indent=1, sort_keys=True) + "\n"
        if plan.is_file() and plan.read_text() != text:
            raise MismatchError(
                f"{self.work}: an interrupted run left parts that were made of something else. Run that one "
                "again to finish it, or delete the folder to give it up."
            )
        if not plan.is_file():
            shutil.rmtree(self.work, ignore_errors=True)
            files.write_text(plan, text)
        for folder in folders:
            (self.work / folder).mkdir(exist_ok=True)

    def done(self, part: Part) -> bool:
        """Return whether a part is there; its users are published last."""
        return (self.work / PARTS / part.name).is_file()

    def finish(self, users: int, names: Sequence[str], known: dict[str, PartFile]) -> OutputMetadata:
        """Write the manifest and put the folder in its place.

        Args:
            users: how many the output must have.
            names: its files, below its folder.
            known: those of them that this run wrote; of others the sha256 is computed now.

        Raises:
            CorruptError: a part is missing, or the parts do not have each user once.
        """
        parts = [known.get(name) or self._look(name) for name in names]
        rows = sum(part.rows for part in parts if part.name.startswith(f"{PARTS}/"))
        if rows != users:
            raise CorruptError(f"{self.work}: {rows} users instead of {users}. Delete it and run again.")
        metadata = OutputMetadata(kind=self.kind, source=self.source, users=users, parts=tuple(parts))
        for abandoned in self.work.rglob(".*.parquet.*"):
            abandoned.unlink(missing_ok=True)
        files.write_text(self.work / METADATA_FILE, metadata.model_dump_json(indent=1) + "\n")
        old = self.directory.with_name(f".{self.directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.directory.exists():
            os.replace(self.directory, old)
        os.replace(self.work, self.directory)
        (self.directory / PLAN_FILE).unlink()
        shutil.rmtree(old, ignore_errors=True)
        return metadata

    def _look(self, name: str) -> PartFile:
        path = self.work / name
        try:
            rows = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(
                f"{path}: cannot be read ({error}). Delete it, then run again: only this part is made anew."
            ) from error
        return PartFile(name=name, rows=rows, bytes=path.stat().st_size, sha256=files.sha256(path))


class PartWriter:
    """Writes one part, row group by row group; it appears, durably, when the block ends well."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        """Name a part.

        Args:
            folder: of the output at work.
            name: of the file, below it.
            schema: its columns.
        """
        self._path = folder / name
        self._name = name
        self._schema = schema
        self._rows = 0

    def __enter__(self) -> PartWriter:
        handle, work = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        os.close(handle)
        self._work = Path(work)
        # Neither dictionaries nor compression make float vectors or row numbers smaller.
        self._writer = pq.ParquetWriter(work, self._schema, compression="none", use_dictionary=False)
        return self

    def write(self, columns: Sequence[pa.Array | pa.ChunkedArray]) -> None:
        """Append a row group."""
        table = pa.table(list(columns), schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._rows += table.num_rows

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._publish()
        finally:
            self._work.unlink(missing_ok=True)

    def _publish(self) -> None:
        with self._work.open("rb") as file:
            os.fsync(file.fileno())
        self._work.chmod(0o644)
        size, digest = self._work.stat().st_size, files.sha256(self._work)
        self.file = PartFile(name=self._name, rows=self._rows, bytes=size, sha256=digest)
        """What the manifest says of it, once it has appeared."""
        os.replace(self._work, self._path)


def floats(width: int) -> pa.DataType:
    """Return the type of `width` float32 a row; Parquet has no lists of the fixed length 0."""
    return pa.list_(pa.float32(), width) if width else pa.list_(pa.float32())


def fixed_lists(rows_NX: np.ndarray) -> pa.Array:
    """Return the rows of a float32 array as an Arrow column of `floats`, without a copy."""
    count, width = rows_NX.shape
    flat = pa.array(np.ascontiguousarray(rows_NX, np.float32).reshape(-1))
    if not width:
        return pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), flat)
    return pa.FixedSizeListArray.from_arrays(flat, type=floats(width))
