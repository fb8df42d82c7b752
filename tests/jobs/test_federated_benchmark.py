from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from federated import CENTRAL, VARIANTS, by_seed, cases, orders, sized
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


def test_the_study_of_sizes_has_all_variants_and_the_central_bound_in_each_setting() -> None:
    names = [case.name for case in sized(quick=False)]
    assert len(names) == len(set(names))
    settings: dict[tuple[str, int, float | None, int], list[str]] = {}
    for case in sized(quick=False):
        key = (case.population, case.clients, case.share, case.seed)
        settings.setdefault(key, []).append(case.label)
    assert all(labels == [*VARIANTS, CENTRAL] for labels in settings.values())
    assert set(settings) == {
        *(("planted", 50, share, seed) for share in (0.7, 0.8) for seed in (0, 1)),
        *(("helpsteer2", clients, 0.5, 0) for clients in (10, 98)),
        *(("polis", clients, None, 0) for clients in (10, 50)),
    }
    # What both studies have is one case, which is run once.
    both = {case.name: case for case in cases(quick=False)}
    assert all(both.get(case.name, case) == case for case in sized(quick=False))


def test_differences_are_of_all_cells_where_all_are_wanted() -> None:
    def record(label: str, seed: int, right: float) -> dict[str, object]:
        cells = ("seen/cold/all", "unseen/cold/1", "unseen/cold/16")
        users = {cell: {"user": [1, 2], "accuracy": [right, right - 0.2]} for cell in cells}
        case = {"population": "planted", "clients": 50, "share": 0.7, "label": label, "seed": seed}
        return {"case": case, "looks": [], "users": users}

    records = [record("FedVPL", 0, 0.5), record("FedVPL", 1, 0.7)]
    records += [record("FedVPA-GP", 0, 0.6), record("FedVPA-GP", 1, 0.9)]
    setting = "planted, 50 clients, 70% in one group"
    few, all_of_them = orders(records)[setting], orders(records, every=True)[setting]
    assert [one["cell"] for one in few] == ["seen/cold/all", "unseen/cold/16"]
    assert [one["cell"] for one in all_of_them] == ["seen/cold/all", "unseen/cold/1", "unseen/cold/16"]
    assert all(one["mean"] == pytest.approx(0.15) for one in all_of_them)
    found = by_seed(records)[setting]["FedVPA-GP"]
    assert found["seeds"] == [0, 1]
    assert found["unseen/cold/1"] == pytest.approx([0.5, 0.8])


@pytest.mark.slow
def test_the_study_of_sizes_writes_accuracy_by_seed_and_all_differences(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "federated.py"), "--study", "sizes", "--quick"]
    command += ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("*.*")] == ["federated_sizes.json"]
    found = json.loads((tmp_path / "federated_sizes.json").read_text())
    (setting,) = found["tables"]
    assert setting == "planted, 10 clients, 70% in one group"
    for label, cells in found["tables"][setting].items():
        of_seeds = found["by_seed"][setting][label]
        assert of_seeds["seeds"] == cells["seeds"] == [0, 1]
        for key, cell in cells.items():
            if "/" in key:
                assert len(of_seeds[key]) == 2
                assert np.mean(of_seeds[key]) == pytest.approx(cell["mean"], abs=1e-6)
    shots = {one["cell"].rpartition("/")[2] for one in found["orders"][setting]}
    assert shots == {"all", "0", "1", "4", "16"}
    assert [len(curve) for curve in found["rounds"][setting]["FedVPA-GP"]] == [4, 4]


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
