"""Rows of a flat file as if they were in memory, whether they fit there or not."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

FITTING_SHARE = 0.5
"""Of the memory a process may use, what a file may take up and still count as fitting."""

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


class MappedRows:
    """The rows of a flat file of float16, memory-mapped: processes share its pages, the system evicts them.

    Where the file does not fit, reading ahead of a page fault, as the system does, brings in thousands of
    bytes for each that is wanted, and evicts what was. There each row is asked for by itself, all rows of a
    call before the first is read, so that the disk has many to find at once.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        """Map a file of N rows of width D."""
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._row_ND = np.frombuffer(self._map, np.float16).reshape(shape)
        self._fits = self._row_ND.nbytes <= FITTING_SHARE * memory_bytes()
        if not self._fits:
            self._map.madvise(mmap.MADV_RANDOM)

    def take(self, index_N: np.ndarray) -> np.ndarray:
        """Return the rows of these numbers, float16 (N, D), a copy."""
        if not self._fits:
            self._ask_for(index_N)
        return self._row_ND[index_N]

    def _ask_for(self, index_N: np.ndarray) -> None:
        width = self._row_ND.strides[0]
        first_N = np.unique(index_N) * width
        start_N = first_N - first_N % mmap.PAGESIZE
        for start, end in zip(start_N.tolist(), (first_N + width).tolist(), strict=True):
            self._map.madvise(mmap.MADV_WILLNEED, start, end - start)


def memory_bytes() -> int:
    """Return the memory this process may use: the machine's, or less where a control group says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            root, name = CONTROL_GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = CONTROL_GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        place = root / group.lstrip("/")
        for folder in [place, *place.parents]:
            if folder.is_relative_to(root) and (folder / name).is_file():
                limit = (folder / name).read_text().strip()
                limits += [int(limit)] if limit.isdecimal() else []
    return min(limits)
