"""Who is worked on together: users of the tables in parts of bounded size, found in the files' footers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raypref.data.tables import Tables
from raypref.errors import CorruptError, InputError


@dataclass(frozen=True)
class Span:
    """Consecutive row groups of one Parquet file."""

    path: Path
    first: int
    end: int


@dataclass(frozen=True)
class Part:
    """Users `first_user` to `end_user` (exclusive) of the users table, and where their rows stand."""

    number: int
    first_user: int
    end_user: int
    spans: tuple[Span, ...]

    @property
    def users(self) -> int:
        """Number of users."""
        return self.end_user - self.first_user

    @property
    def name(self) -> str:
        """Name of the files that the part becomes."""
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True)
class Group:
    """A row group of a file that is sorted by user: its first and last user."""

    path: Path
    number: int
    first_user: int
    last_user: int


def plan_users(tables: Tables, users_per_part: int) -> list[Part]:
    """Divide all users of the tables into parts of about `users_per_part`.

    A part is whole row groups of comparisons, so it may be larger where these hold more users. The plan
    depends on the tables and on that number alone, never on the workers.

    Raises:
        InputError: there are no users.
        CorruptError: a file cannot be read, or buckets share users.
    """
    total = tables.metadata.seen_users + tables.metadata.unseen_users
    if not total:
        raise InputError(f"{tables.directory}: the tables hold no users; lower prepare.min_train.")
    groups = list(user_groups(tables.files()))
    if groups and groups[-1].last_user >= total:
        raise CorruptError(f"{tables.directory}: comparisons of users that the users table does not have.")
    # A user whose comparisons cross into the next row group belongs to the group where they begin.
    ends = [group.last_user + 1 for group in groups]
    parts: list[Part] = []
    first_user = first_group = 0
    for at in range(len(groups)):
        if ends[at] - first_user >= users_per_part and at + 1 < len(groups):
            parts.append(_part(len(parts), first_user, ends[at], groups, first_group))
            first_user, first_group = ends[at], at + 1
    if first_user < total:
        parts.append(_part(len(parts), first_user, total, groups, first_group))
    return parts


def _part(number: int, first_user: int, end_user: int, groups: Sequence[Group], first_group: int) -> Part:
    return Part(number, first_user, end_user, spans_before(groups, first_group, end_user))


def spans_before(groups: Sequence[Group], first_group: int, end_user: int) -> tuple[Span, ...]:
    """Return where the groups from `first_group` on stand that begin before `end_user`, files in one span."""
    spans: list[Span] = []
    for at in range(first_group, len(groups)):
        group = groups[at]
        if group.first_user >= end_user:
            break
        if spans and spans[-1].path == group.path:
            spans[-1] = Span(group.path, spans[-1].first, group.number + 1)
        else:
            spans.append(Span(group.path, group.number, group.number + 1))
    return tuple(spans)


def user_groups(paths: Sequence[Path]) -> Iterator[Group]:
    """Yield the row groups of files that together are sorted by their column `user`.

    Raises:
        CorruptError: a file cannot be read, does not say which users a row group holds, or is not sorted.
    """
    last = -1
    for path in paths:
        try:
            with pq.ParquetFile(path) as parquet:
                footer, names = parquet.metadata, parquet.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(f"{path}: cannot be read ({error}); make it again.") from error
        column = names.index("user")
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            if not group.num_rows:
                continue
            statistics = group.column(column).statistics
            if statistics is None or not statistics.has_min_max or statistics.null_count:
                raise CorruptError(f"{path}: `user` has no statistics, or is missing in rows; make it anew.")
            low, high = int(statistics.min), int(statistics.max)
            if low < last:
                raise CorruptError(
                    f"{path}: users {low} to {high} come after user {last}; rows must be sorted by user over "
                    "all files. Make it again."
                )
            last = high
            yield Group(path, number, low, high)
