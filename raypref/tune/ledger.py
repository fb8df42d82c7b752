"""What a sweep has found so far: a line of JSON a finished trial, safe on disk before it counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raypref import files

Status = Literal["finished", "stopped", "diverged", "failed"]


class Part(BaseModel):
    """Base of every part of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Look(Part):
    """What unseen users say of a trial at one of its rungs, or at its end."""

    rung: int = Field(description="Place among the looks; the end has the last, however early it came.")
    steps: int = Field(description="Steps behind the weights that were measured.")
    accuracy: float = Field(description="Mean over unseen users of each user's share.")
    nll: float = Field(description="Nats, mean over unseen users of each user's mean.")


class Record(Part):
    """A trial that is over."""

    number: int
    values: dict[str, Any] = Field(description="Of each parameter, by path.")
    status: Status = Field(
        description="finished: trained to its end; stopped: by its place among others; diverged: left the "
        "finite numbers; failed: anything else, tried again when the sweep is."
    )
    looks: list[Look] = Field(description="In their order.")
    seconds: float = Field(description="In the worker, without start-up.")
    message: str | None = Field(default=None, description="Why it diverged or failed.")

    @property
    def last(self) -> Look | None:
        """The last look, None where there was none."""
        return self.looks[-1] if self.looks else None


class Ledger:
    """The records of one sweep, in the order in which they came."""

    def __init__(self, path: Path) -> None:
        """Read the ledger at `path`, if there is one; a line that a kill cut short is not one."""
        self._path = path
        self.records: dict[int, Record] = {}
        """By number; a trial that failed and was tried again has its last one."""
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                self._take(Record.model_validate_json(line))
            except ValidationError:
                continue
        lines = [record.model_dump_json() for record in self.records.values()]
        files.write_text(path, "".join(f"{line}\n" for line in lines))

    def add(self, record: Record) -> None:
        """Write a record down; it is on disk when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps(record.model_dump(mode="json")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(record)

    @property
    def over(self) -> list[Record]:
        """The records of trials that are not to be run again."""
        return [record for record in self.records.values() if record.status != "failed"]

    def best(self) -> Record | None:
        """Return the finished trial with the highest accuracy, the first of equals; None without any."""
        finished = [record for record in self.records.values() if record.status == "finished"]
        return max(finished, key=lambda record: (record.looks[-1].accuracy, -record.number), default=None)

    def _take(self, record: Record) -> None:
        self.records.pop(record.number, None)
        self.records[record.number] = record
