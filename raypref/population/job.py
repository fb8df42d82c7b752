"""A population job: parts that are missing are made, then the output is put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from raypref.population.output import Output, OutputMetadata, PartFile
from raypref.population.plan import Part
from raypref.population.progress import Progress
from raypref.population.stream import in_actors

Make = Callable[[Part], tuple[PartFile, ...]]
"""Publishes a part, the same bytes whoever makes it, and returns its files."""


@dataclass(frozen=True)
class Made:
    """A part that is published."""

    users: int
    files: tuple[PartFile, ...]
    begun_s: float
    """Since 1970, on the worker's clock."""
    cpu_s: float
    """CPU time of the worker's process."""


class _Timed:
    """Makes parts, and tells how long each took."""

    def __init__(self, open_work: Callable[[], Make]) -> None:
        self._make = open_work()

    def __call__(self, part: Part) -> Made:
        begun_s, cpu_s = time.time(), time.process_time()
        written = self._make(part)
        return Made(part.users, written, begun_s, time.process_time() - cpu_s)


@dataclass(frozen=True)
class Report:
    """What a job did."""

    metadata: OutputMetadata
    made: int
    """Users that this run made; the others were there already."""
    start_s: float = 0.0
    """Seconds until the first worker was ready: Ray, processes, imports, the bundle."""
    work_s: float = 0.0
    """Seconds from then to the last part, and of putting the output together."""
    cpu_s: float = 0.0
    """CPU time of the workers in parts, seconds."""

    def __str__(self) -> str:
        if not self.made:
            return f"{self.metadata.users} users, there already"
        speed = self.made / max(self.work_s, 1e-9)
        return (
            f"{self.metadata.users} users; {self.made} made in {self.work_s:.1f} s ({speed:.0f} users/s), "
            f"workers ready after {self.start_s:.1f} s"
        )


@dataclass(frozen=True)
class Job:
    """What is made, by whom, and where it goes."""

    name: str
    output: Output
    parts: Sequence[Part]
    folders: Sequence[str]
    """Of the output's files, one file a part in each."""
    open_work: Callable[[], Make]
    """Called once in each worker."""
    workers: int | None
    extra: Sequence[str] = ()
    """Further files of the output, which `prepare` writes."""
    prepare: Callable[[], object] = lambda: None
    """Called once the output is begun."""

    def run(self) -> Report:
        """Make the output, or what an earlier run left of it.

        Raises:
            RayprefError: what a worker raised; parts that are published stay, and the next run goes on.
        """
        with self.output.alone():
            finished = self.output.finished()
            if finished is not None:
                return Report(finished, 0)
            self.output.begin(self.folders)
            self.prepare()
            missing = [part for part in self.parts if not self.output.done(part)]
            users, made = sum(part.users for part in self.parts), sum(part.users for part in missing)
            known: dict[str, PartFile] = {}
            begun_s = first_s = ended_s = time.time()
            cpu_s = 0.0
            with Progress(self.name, users, users - made) as progress:
                for part in in_actors(missing, partial(_Timed, self.open_work), self.workers):
                    known |= {file.name: file for file in part.files}
                    first_s = part.begun_s if cpu_s == 0.0 else min(first_s, part.begun_s)
                    cpu_s += part.cpu_s
                    ended_s = time.time()
                    progress.add(part.users, part.begun_s)
            finishing_s = time.time()
            names = [f"{folder}/{part.name}" for folder in self.folders for part in self.parts]
            metadata = self.output.finish(users, [*self.extra, *names], known)
            work_s = ended_s - first_s + time.time() - finishing_s
            return Report(metadata, made, first_s - begun_s, work_s, cpu_s)
