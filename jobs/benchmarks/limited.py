"""A process group with a limit of memory, page cache included, where this machine lets us make one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
HIERARCHIES = ((GROUPS / "memory", "memory.limit_in_bytes"), (GROUPS, "memory.max"))
"""Where groups that limit memory stand, and the file that holds the limit; version 1, then version 2."""


@contextmanager
def memory_group(limit_bytes: int) -> Generator[Path | None]:
    """Yield a control group that a process joins with `join`; None where we may not make one."""
    folder = _make(limit_bytes)
    try:
        yield folder
    finally:
        if folder is not None:
            folder.rmdir()


def join(group: Path) -> None:
    """Put this process into a group: what it maps and reads from now on counts towards the limit."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def drop_pages(file: Path) -> None:
    """Make the system forget a file's pages, so that whoever reads it next pays for them."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _make(limit_bytes: int) -> Path | None:
    for root, name in HIERARCHIES:
        folder = root / f"raypref-{uuid.uuid4().hex[:12]}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / name).is_file():
                (folder / name).write_text(str(limit_bytes))
                return folder
        except OSError:
            pass
        folder.rmdir()
    return None
