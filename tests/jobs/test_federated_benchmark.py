from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from federated import cases
from federated_case import chosen
from federated_groups import adjusted_rand

from tests.conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "jobs/benchmarks"


def test_groups_are_compared_whatever_they_are_called() -> None:
    true = np.array([0, 0, 0, 1, 1, 1])
    assert adjusted_rand(true, true) == adjusted_rand(1 - true, true) == 1.0
    assert adjusted_rand(np.array([0, 0, 1, 1, 1, 1]), true) == pytest.approx(0.3243, abs=1e-4)
    random = np.random.default_rng(0)
    by_chance = [adjusted_rand(random.integers(0, 2, 200), random.integers(0, 2, 200)) for _ in range(50)]
    assert abs(np.mean(by_chance)) < 0.01


def test_every_case_is_one_of_its_own() -> None:
    names = [case.name for case in cases(quick=False)]
    assert len(names) == len(set(names))
    labels = {case.label for case in cases(quick=False)}
    assert {"FedAvg-BT", "FedBiscuit-U2", "FedVPL", "+ orthogonal", "+ mixture prior", "FedVPA-GP"} <= labels


@pytest.mark.slow
def test_the_study_writes_every_figure(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "federated.py"), "--quick", "--out", str(tmp_path)]
    command += ["--work", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "federated.json").read_text())
    (setting,) = found["tables"]
    assert setting == "planted, 10 clients"
    assert set(found["tables"][setting]) == {"FedAvg-BT", "FedVPL", "FedVPA-GP"}
    for cells in found["tables"][setting].values():
        assert all(0.4 < cell["mean"] < 1.0 for key, cell in cells.items() if "/" in key)
    assert {(one["ahead"], one["of"]) for one in found["orders"][setting]} == {
        ("FedVPL", "FedAvg-BT"),
        ("FedVPA-GP", "FedVPL"),
        ("FedVPA-GP", "FedAvg-BT"),
    }
    (looks,) = found["privacy"].values()
    epsilons = [look["epsilon"] for look in looks]
    assert epsilons == sorted(epsilons)
    assert all(math.isfinite(value) for value in epsilons)
    page = (tmp_path / "federated.html").read_text()
    assert page.count("<svg") == 1 + 1 + 1  # groups, the means after round 1, privacy
    again = subprocess.run(command, capture_output=True, text=True)
    assert "[1/" not in again.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_clients_are_counted_beside_the_plain_loop(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "federated_scale.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--users", "60"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "federated_scale.json").read_text())
    (size,) = found["sizes"]
    assert size["users"] == 60
    low, high = size["ratio"]["range"]
    assert 0 < low <= size["ratio"]["median"] <= high
    assert size["peak_mb"]["median"] > 50


def test_clients_are_of_the_two_groups_by_their_shares() -> None:
    class Tables:
        rows = np.arange(100) - 20

    case = next(case for case in cases(quick=False) if case.share == 0.7)
    group_U = np.arange(100) % 2
    few = case.__class__("planted", 20, "x", {}, share=0.7)
    found = chosen(Tables(), group_U, few)  # type: ignore[arg-type]
    assert len(found) == 20
    assert (found >= 20).all()
    assert int((group_U[found] == 0).sum()) == 14
