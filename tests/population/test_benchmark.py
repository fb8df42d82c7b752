from __future__ import annotations

import json
from pathlib import Path

import population
import pytest


def test_a_rehearsal_does_not_overwrite_the_figures() -> None:
    with pytest.raises(SystemExit) as stop:
        population.main(["--quick"])
    assert stop.value.code == 2


@pytest.mark.ray
@pytest.mark.slow
def test_both_programs_compute_the_same_and_are_measured(tmp_path: Path) -> None:
    assert population.main(["--quick", "--out", str(tmp_path), "--work", str(tmp_path)]) == 0
    found = json.loads((tmp_path / population.FILE).read_text())
    assert [size["users"] for size in found["sizes"]] == [300, 600]
    for size in found["sizes"]:
        ours, plain, limit = size["raypref"], size[size["reference"]], size["limit"]
        assert ours["work_s"]["median"] == pytest.approx(
            ours["adapt_s"]["median"] + ours["score_s"]["median"]
        )
        assert ours["wall_s"]["median"] > ours["work_s"]["median"] + ours["worker_start_s"]["median"]
        assert ours["all_peak_mib"]["median"] >= ours["workers_peak_mib"]["median"] > 100
        assert plain["wall_s"]["median"] > plain["work_s"]["median"] > 0
        assert size["ratio"]["median"] == pytest.approx(plain["work_s"]["median"] / ours["work_s"]["median"])
        assert limit["bytes_per_user"]["gathered"] == 2 * 16 * 384 * 2
        assert 0 < limit["us_per_user"] < size["us_per_user"]
    assert [path.name for path in tmp_path.iterdir()] == [population.FILE]
