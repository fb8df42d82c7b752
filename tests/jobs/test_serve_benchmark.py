from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypref.client.scores import Scores
from raypref.serve import routes
from raypref.serve.calls import Scored
from raypref.wire.answers import ScoreAnswer
from raypref.wire.arrays import Encoded, encoded_rows
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "jobs/benchmarks/serve.py"
RESULT = REPOSITORY / "jobs/benchmarks/results/serve.json"
SPREADS = ("per_s", "p50_ms", "p99_ms")


def check_spread(found: dict[str, Any]) -> None:
    low, high = found["range"]
    assert 0 < low <= found["median"] <= high


def check_fields(found: dict[str, Any]) -> None:
    assert {"processor", "cores", "system"} <= found["machine"].keys()
    assert {"python", "ray", "torch", "pydantic"} <= found["versions"].keys()
    assert found["config"]["throughput_mode"] is True
    assert found["fsync_per_s"] > 0
    for kind, target in (("score", 0.7), ("learn", 0.4)):
        for part in (found[kind], found["low_load"][kind]):
            for name in ("raypref", "nothing"):
                for figure in SPREADS:
                    check_spread(part[name][figure])
            check_spread(part["ratio"])
        assert found["low_load"][kind]["connections"] == 1
        assert found[kind]["target"] == target
        assert found[kind]["holds"] is (found[kind]["ratio"]["median"] >= target)
    assert found["client"]["score_per_s"] > 0
    bulk = found["bulk"]
    assert {one["form"] for one in bulk["now"]} == {"floats", "base64", "safetensors"}
    assert {one["method"] for one in bulk["now"]} == {"vrf", "lore"}
    assert {one["width"] for one in bulk["now"]} == set(found["config"]["widths"])
    for one in bulk["now"]:
        assert 0 < one["products_ms"] < one["total_ms"]
        assert one["outside_ms"] == pytest.approx(one["total_ms"] - one["inside_ms"])
        assert one["stages_ms"]["item pass"] > 0
        assert one["stages_ms"]["users x items"] > 0
        assert one["stages_ms"]["store"] > 0
    assert min(bulk["limits"].values()) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_rehearsal_measures_everything_and_leaves_no_process(tmp_path: Path) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed (apt-get install wrk)")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_fields(json.loads((tmp_path / "serve.json").read_text()))


def test_the_recorded_figures_are_complete() -> None:
    if not RESULT.is_file():
        pytest.skip("no figures are recorded yet")
    check_fields(json.loads(RESULT.read_text()))


def scored(users: tuple[str, ...], uncertain: bool) -> Scored:
    random = np.random.default_rng(0)
    rows = max(1, len(users))
    mean, std, probability = random.standard_normal((3, rows, 5)).astype(np.float32)
    mean[0, :4] = [0.0, -0.0, 1e-38, 3.4e38]
    return Scored(
        "vrf@0", users, np.arange(rows), np.arange(rows), False, mean, std if uncertain else None, probability
    )


@pytest.mark.parametrize("uncertain", [True, False])
@pytest.mark.parametrize("users", [(), ("a",), ("a", "b", "c")])
@pytest.mark.parametrize("rows", [np.ascontiguousarray, encoded_rows])
def test_an_answer_written_row_by_row_is_what_its_model_writes(
    rows: Any, users: tuple[str, ...], uncertain: bool
) -> None:
    given = scored(users, uncertain)
    body = bytes(routes._scores(given, rows).body)
    answer = ScoreAnswer.model_validate_json(body)
    # Not byte for byte: it takes fewer digits to tell a float32 from its neighbours.
    assert json.loads(answer.model_dump_json()) == json.loads(body)
    found = Scores.of(answer)
    assert found.users == (users or (None,))
    assert found.mean.tobytes() == given.mean_UN.tobytes()
    assert found.probability.tobytes() == given.probability_UN.tobytes()
    if given.std_UN is None:
        assert found.std is None
    else:
        assert found.std is not None
        assert found.std.tobytes() == given.std_UN.tobytes()
    assert list(found.cold) == [not shots for shots in given.shots_U]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_are_encoded_as_arrays_are(dtype: str) -> None:
    array = np.random.default_rng(1).standard_normal((4, 3)).astype(dtype)
    assert [fields["base64"] for fields in encoded_rows(array[:, :0])] == [""] * 4
    for fields, row in zip(encoded_rows(array), array, strict=True):
        encoded = Encoded.model_validate(fields)
        assert encoded == Encoded.of(row)
        wanted = row.astype("<f2" if dtype == "float16" else "<f4")
        assert encoded.array().tobytes() == wanted.tobytes()
        assert encoded.model_dump() == {**fields, "shape": (3,)}
