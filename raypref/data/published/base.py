"""The contract of published datasets: what is read of them, and how it becomes preferences of users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from raypref.config import Section
from raypref.data.published.records import Records
from raypref.data.rows import RowTally

Kind = Literal["comparisons", "ratings"]

Row = dict[str, Any]
"""A row of a long form, not yet checked."""


class Count:
    """What was met on the way: distinct things by name, and records that say nothing, by kind."""

    def __init__(self) -> None:
        self._seen: dict[str, set[object]] = {}
        self.bad = RowTally()
        self.left = RowTally()
        self.records = 0

    def met(self, name: str, thing: object) -> None:
        """Count a thing, such as a conversation, once."""
        self._seen.setdefault(name, set()).add(thing)

    def skip(self, kind: str, record: int | None = None) -> None:
        """Count a record, by default the last that was read, as one that gives no row."""
        self.bad.add(kind, [self.records - 1 if record is None else record])

    def leave(self, kind: str, record: int | None = None) -> None:
        """Count a record that is sound, and left out by what was chosen."""
        self.left.add(kind, [self.records - 1 if record is None else record])

    def figures(self) -> dict[str, int]:
        """Return how many distinct things there were, by name."""
        return {name: len(things) for name, things in self._seen.items()}


class Published(Section, ABC):
    """A published dataset; its fields are what can be chosen about reading it."""

    name: ClassVar[str]
    """As it is called on the command line."""
    title: ClassVar[str]
    """What it is, in a line."""
    citation: ClassVar[str]
    """Where it is published."""
    licence: ClassVar[str]
    """Under which its owners give it."""
    files: ClassVar[str]
    """What `--from` is to hold, in words."""
    published: ClassVar[Mapping[str, int]] = {}
    """Its owners' own figures, by the names of ours."""

    @property
    def kind(self) -> Kind:
        """Which long form it becomes."""
        return "comparisons"

    @abstractmethod
    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield rows of the long form.

        Args:
            records: what `--from` holds.
            count: takes what is met, and what is left out.

        Raises:
            InputError: a file or a column is missing, or is not what it should be.
        """
