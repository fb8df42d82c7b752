from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_table
import pytest
import torch
from clock import medians
from gpu import faults
from gpu_case import METHODS as ON_A_GPU
from gpu_case import Need, apart, limit
from train import first_at
from train_peers import published

from raypref.methods import METHODS, LoReConfig
from tests.conftest import REPOSITORY


def quick(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, f"jobs/benchmarks/{name}.py", "--quick", "--out", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["command"] == f"python jobs/benchmarks/{name}.py"
    assert found["machine"]["cores"] > 0
    assert all(value > 1e6 for value in found["peaks"].values())
    return found


@pytest.mark.slow
def test_score_says_what_products_cost(tmp_path: Path) -> None:
    rows = quick("score", tmp_path)["rows"]
    assert {(row["method"], row["what"], row["dtype"]) for row in rows} == {
        (method, what, dtype)
        for method in ("lore", "vrf")
        for what in ("item", "evidence")
        for dtype in ("float32", "bfloat16", "float16")
    }
    for row in rows:
        low, high = row["ratio"]["range"]
        assert 0 < low <= row["ratio"]["median"] <= high
        assert row["limit"] > 0


@pytest.mark.slow
def test_adapt_times_every_method(tmp_path: Path) -> None:
    found = quick("adapt", tmp_path)
    assert set(found["methods"]) == {method.model_fields["type"].default for method in METHODS}
    for figures in found["methods"].values():
        steps = found["steps_one_at_a_time"]["users_s"]["median"]
        assert figures["times_steps_one_at_a_time"] == pytest.approx(figures["users_s"]["median"] / steps)
    # A user at a time costs more than users together, and steps more than a sum.
    assert found["methods"]["vrf"]["times_steps_one_at_a_time"] > 100
    assert found["methods"]["vrf"]["reach_users_s"] == 1_000_000


@pytest.mark.slow
def test_methods_are_measured_as_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = quick("gpu", tmp_path)
    assert set(found["methods"]) == set(ON_A_GPU)
    for name, figures in found["methods"].items():
        assert faults(figures) == []
        assert [(row["precision"], row["users"]) for row in figures["training"]] == [
            (precision, users) for users in (8, 16) for precision in ("float32", "tf32", "bfloat16")
        ]
        rows = [row for part in ("training", "rows", "infer", "reward") for row in figures[part]]
        # How large a share is, is the clock's affair; a rehearsal's sizes are too small for it to mean much.
        assert all(row["share"] > 0 and row["bound"] in ("bytes", "flops") for row in rows)
        # Arithmetic in half the bits says about a thousandth less.
        for row in figures["rows"]:
            assert row["error"] < (1e-2 if row["precision"] == "bfloat16" else 1e-6), (name, row)
        assert bool(figures["infer"]) == (name != "bt")
    monkeypatch.setattr(gpu_table, "RESULTS", tmp_path)
    gpu_table.main()
    lines = capsys.readouterr().out.splitlines()
    tables = [[line for line in lines if line.startswith(f"| {name} |")] for name in ON_A_GPU]
    assert [len(rows) for rows in tables] == [3] * len(ON_A_GPU)


def test_what_fails_on_a_gpu_is_said() -> None:
    right = {"correct": {"apart": {"item": 1e-6}}, "training": [{"loss": [0.7, 0.6]}]}
    assert faults(right) == []
    assert faults({"failed": "no memory"}) == ["no memory"]
    assert faults(right | {"rows": {"failed": "a bug"}}) == ["rows failed: a bug"]
    assert len(faults(right | {"training": [{"loss": [0.6, 0.7]}, {"loss": [0.6, float("nan")]}]})) == 2
    assert len(faults(right | {"correct": {"apart": {"item": float("nan"), "infer": 0.1}}})) == 2


def test_the_limit_is_what_takes_longer() -> None:
    able = {"copy_bytes": 10.0, "tf32_flops": 100.0}
    assert limit(Need(20.0, 100.0), "tf32", able) == (2.0, "bytes")
    assert limit(Need(5.0, 100.0), "tf32", able) == (1.0, "flops")


def test_the_distance_is_relative_and_sees_what_is_not_a_number() -> None:
    assert apart(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert not apart(torch.tensor([float("nan")]), torch.ones(1)) <= 1.0
    assert apart(torch.ones(2, 0), torch.ones(2, 0)) == 0.0


@pytest.mark.slow
def test_train_compares_times_to_one_accuracy(tmp_path: Path) -> None:
    (row,) = quick("train", tmp_path)["populations"]
    curve = row["ours"]["curve"]
    steps = [point["step"] for point in curve]
    assert steps[0] == 0
    assert steps[-1] == LoReConfig().recipe.steps
    assert steps == sorted(steps)
    assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
    assert row["comparisons"] == 200 * 45
    # Everything learns this population, from random heads too.
    assert curve[-1]["accuracy"] > 0.85
    assert row["schedule"]["quickest"]["accuracy"] > 0.8
    assert {run["form"] for run in row["joint"]["runs"]} == {"published", "map"}
    for name in ("joint", "schedule"):
        assert row[name]["quickest"]["accuracy"] >= row[name]["accuracy"]
    assert max(point["accuracy"] for point in row["full_batch"]["curve"]) > 0.8
    assert len(row["walk"]["step_s"]) == 3


def test_a_target_is_reached_by_the_first_that_is_as_good() -> None:
    curve = [{"seconds": float(s), "accuracy": a} for s, a in ((1, 0.5), (2, 0.7), (3, 0.6), (4, 0.9))]
    assert first_at(curve, 0.6) == 2.0
    assert first_at(curve, 0.9) == 4.0
    assert first_at(curve, 0.95) is None


def test_the_published_margin_is_the_weighted_one() -> None:
    delta, logits, bases = torch.randn(3, 4, 5), torch.randn(3, 2), torch.randn(2, 5)
    expected = torch.einsum("upd,kd,uk->up", delta, bases, torch.softmax(logits, -1)) / 100.0
    torch.testing.assert_close(published(delta, logits, bases), expected)


def test_works_take_turns() -> None:
    order: list[str] = []
    works = {name: (lambda n=name: order.append(n)) for name in "ab"}
    found = medians(works, torch.device("cpu"), 3, 0.0)
    assert {name: len(taken) for name, taken in found.items()} == {"a": 3, "b": 3}
    assert "".join(order).endswith("ababab")
