from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from raypref.data import mapped
from raypref.data.mapped import MappedRows, memory_bytes


@pytest.fixture
def rows_ND() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float16)


@pytest.mark.parametrize("memory", [10_000, 10**9], ids=["larger than memory", "fits"])
def test_rows_are_those_of_the_file_whether_they_fit_or_not(
    memory: int, rows_ND: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "memory_bytes", lambda: memory)
    rows_ND.tofile(tmp_path / "rows")
    rows = MappedRows(tmp_path / "rows", rows_ND.shape)
    for index_N in (np.array([0, 2999, 2999, 7]), np.arange(3000), np.zeros(0, np.int64)):
        assert np.array_equal(rows.take(index_N), rows_ND[index_N])


def test_only_what_does_not_fit_is_asked_for_row_by_row(
    rows_ND: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    class Recorded(mmap.mmap):
        def madvise(self, *arguments: int) -> None:
            asked.append(arguments)
            super().madvise(*arguments)

    monkeypatch.setattr(mapped.mmap, "mmap", Recorded)
    rows_ND.tofile(tmp_path / "rows")
    for share, expected in ((2.1, []), (1.9, [(mmap.MADV_RANDOM,)])):
        monkeypatch.setattr(mapped, "memory_bytes", lambda share=share: int(share * rows_ND.nbytes))
        asked.clear()
        rows = MappedRows(tmp_path / "rows", rows_ND.shape)
        assert asked == expected
    rows.take(np.array([2000, 5, 5]))
    # A row is 48 bytes, and a page 4096: the pages of both rows, whole, each once.
    assert asked[1:] == [(mmap.MADV_WILLNEED, 0, 288), (mmap.MADV_WILLNEED, 94208, 1840)]


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/job", {"job/memory.max": "5000\n"}, 5000),
        ("0::/job", {"job/memory.max": "max\n"}, None),
        ("0::/user/job", {"user/memory.max": "4000", "user/job/memory.max": "9000"}, 4000),
        ("0::/elsewhere", {"memory.max": "7000"}, 7000),
        ("4:cpu,memory:/job", {"memory/job/memory.limit_in_bytes": "6000"}, 6000),
        ("4:memory:/job", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("3:cpu:/job", {"memory/job/memory.limit_in_bytes": "6000"}, None),
    ],
)
def test_memory_is_what_the_control_groups_leave(
    membership: str,
    files: dict[str, str],
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cgroup").write_text(membership + "\n")
    monkeypatch.setattr(mapped, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(mapped, "MEMBERSHIP", tmp_path / "cgroup")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes() == (machine if expected is None else expected)
