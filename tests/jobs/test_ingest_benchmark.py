from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ingest import pages_per_row
from limited import memory_group

from tests.conftest import REPOSITORY


def test_pages_of_a_row() -> None:
    assert pages_per_row(8192) == 2.0
    assert pages_per_row(4096) == 1.0
    assert pages_per_row(1024) == 1.0
    # Of 16 rows of 768 bytes in three pages, two begin in one page and end in the next.
    assert pages_per_row(768) == 1.125


@pytest.mark.slow
def test_the_rehearsal_measures_everything(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/benchmarks/ingest.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "ingest.json").read_text())
    (width,) = found["widths"]
    assert width["dim"] == 384
    for name in ("pyarrow_gb_per_s", "steps_gb_per_s", "ratio", "first_pass_gb_per_s"):
        assert width[name]["median"] > 0
    assert width["first_pass_gb_per_s"]["median"] < width["steps_gb_per_s"]["median"]
    limited = width["larger_than_memory"]["limited"]
    with memory_group(2**30) as group:
        assert (limited is None) == (group is None)
    if limited:
        assert limited["memory_bytes"] * 3 <= found["config"]["table_bytes"]
        assert limited["comparisons_per_s"] > 0
