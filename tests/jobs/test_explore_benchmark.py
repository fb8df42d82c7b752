"""The benchmark of what to ask next, and the table that docs/understand.md makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import explore
import explore_figure
import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_gain_needs_fewer_answers(tmp_path: Path) -> None:
    explore.main(["--quick", "--out", str(tmp_path)])
    [row] = json.loads((tmp_path / "explore.json").read_text())["rows"]
    assert len(row["gain"]) == len(row["random"]) == explore.ANSWERS + 1
    assert row["gain"][0] == row["random"][0]
    assert sum(row["gain"]) > sum(row["random"])


def test_the_table_is_what_was_recorded() -> None:
    page = (REPOSITORY / "docs/understand.md").read_text()
    found = json.loads((REPOSITORY / "jobs/benchmarks/results/explore.json").read_text())["rows"]
    for method in explore.METHODS:
        rows = [row for row in found if row["method"] == method]
        right = " / ".join(f"{median(row[way][5] for row in rows):.3f}" for way in ("gain", "random"))
        needed = " / ".join(
            ", ".join("–" if row[f"{way}_needed"] is None else str(row[f"{way}_needed"]) for row in rows)
            for way in ("gain", "random")
        )
        assert f"| {method} | {right} | {needed} |" in page


def test_the_figure_is_what_was_recorded() -> None:
    results = REPOSITORY / "jobs/benchmarks/results"
    found = json.loads((results / "explore.json").read_text())
    assert (results / "explore.svg").read_text() == explore_figure.drawn(found)
    assert "](../jobs/benchmarks/results/explore.svg)" in (REPOSITORY / "docs/understand.md").read_text()
    found["rows"][0]["gain"][3] += 0.1
    assert (results / "explore.svg").read_text() != explore_figure.drawn(found)


def test_answers_that_are_enough() -> None:
    assert explore.needed([0.1, 0.8, 0.7]) == 1
    assert explore.needed([0.1, 0.7]) is None
