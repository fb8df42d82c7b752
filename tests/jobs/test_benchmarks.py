from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, terminal_signals

BENCHMARKS = REPOSITORY / "jobs/benchmarks"
CHEAP = ("bt", "lore", "vrf")
POPULATIONS = ("planted-noisy", "planted-extreme")
SHOTS = (0, 1, 4, 16)


def command(folder: Path, *arguments: str) -> list[str]:
    """Return the quick benchmark's command line, below `folder`."""
    script = [sys.executable, str(BENCHMARKS / "methods.py"), "--quick", "--processes", "2"]
    return [*script, "--work", str(folder / "work"), "-o", str(folder / "results"), *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True)


def result(folder: Path, population: str) -> dict[str, Any]:
    return json.loads((folder / f"results/methods_{population}.json").read_text())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    done = run(folder, "--methods", *CHEAP)
    assert done.returncode == 0, done.stderr
    assert "[6/6]" in done.stderr
    assert "<svg" in (folder / "results/methods.html").read_text()
    return folder


@pytest.mark.slow
def test_every_figure_of_the_format_is_there(recorded: Path) -> None:
    for population in POPULATIONS:
        found = result(recorded, population)
        assert (found["population"], found["setting"]) == (population, "cold")
        assert (tuple(found["shots"]), found["seeds"]) == (SHOTS, [0])
        assert tuple(found["methods"]) == CHEAP
        for label, method in found["methods"].items():
            assert method["method"]["type"] == label
            assert method["parameters"]["shared"] > 0
            assert method["parameters"]["per_user"] == 0
            assert method["fit_seconds"]["median"] > 0
            assert {(one["shots"], one["users"]) for one in method["adaptation"]} == {
                (shots, users) for shots in (4, 16) for users in (1, 10_000)
            }
            for cell in method["cells"].values():
                low, high = cell["interval"]
                assert low <= cell["accuracy"] <= high
                assert sum(one["users"] for one in cell["uncertainty"]["by_user"]) == cell["users"]
                if label == "bt":
                    assert cell["difference"] == {"mean": 0.0, "interval": [0.0, 0.0]}


@pytest.mark.slow
def test_personal_methods_learn_what_the_population_planted(recorded: Path) -> None:
    for population in POPULATIONS:
        methods = result(recorded, population)["methods"]
        for label in ("lore", "vrf"):
            difference = methods[label]["cells"]["unseen/cold/16"]["difference"]
            assert difference["interval"][0] > 0.02, (population, label)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(recorded: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (recorded / "work/trials").iterdir()}
    assert len(before) == 6
    figures = {name: result(recorded, name)["methods"]["lore"]["cells"] for name in POPULATIONS}
    lost = next(path for path in before if json.loads(path.read_text())["trial"]["label"] == "lore")
    lost.unlink()
    done = run(recorded, "--methods", *CHEAP)
    assert done.returncode == 0, done.stderr
    assert "5 of 6 trials are recorded already" in done.stderr
    after = {path: path.stat().st_mtime_ns for path in (recorded / "work/trials").iterdir()}
    assert [path for path in before if before[path] != after[path]] == [lost]
    assert {name: result(recorded, name)["methods"]["lore"]["cells"] for name in POPULATIONS} == figures


@pytest.mark.slow
def test_the_table_prints_what_was_recorded(recorded: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "table.py"), str(recorded / "results")]
    lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0] == "| data | method | seen | 0 shots | 1 shots | 4 shots | 16 shots |"
    assert len(lines) == 2 + len(POPULATIONS) * len(CHEAP)
    lore = next(line for line in lines if "noisy" in line and "| lore |" in line)
    accuracy = result(recorded, "planted-noisy")["methods"]["lore"]["cells"]["unseen/cold/16"]["accuracy"]
    assert lore.endswith(f"| {accuracy:.3f} ▲ |")


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_stops_no_other(recorded: Path) -> None:
    program = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
from trials import Trial, run_trials

if __name__ == "__main__":
    diverging = {{"type": "lore", "recipe": {{"lr": 1e30, "steps": 5}}}}
    methods = {{"wrong": {{"type": "lore", "basis": 3}}, "diverging": diverging, "bt": {{"type": "bt"}}}}
    trials = [Trial("planted-noisy", 0, label, method, "quick") for label, method in methods.items()]
    records = run_trials(trials, Path({str(recorded / "failing")!r}), processes=1)
    print(json.dumps([[record.trial.label, record.error, len(record.cells)] for record in records]))
"""
    script = recorded / "failing.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    wrong, diverging, bt = json.loads(done.stdout)
    assert wrong == ["wrong", "wrong: method.lore.basis: unknown key", 0]
    assert diverging[0] == "diverging"
    assert "not finite" in diverging[1]
    assert bt == ["bt", None, 1 + len(SHOTS)]


@pytest.mark.slow
def test_ctrl_c_ends_the_run_and_its_processes(tmp_path: Path) -> None:
    with subprocess.Popen(
        command(tmp_path, "--methods", "bt", "vrf"),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=terminal_signals,
    ) as child:
        assert child.stderr is not None
        while "[1/4]" not in (line := child.stderr.readline()):
            assert line, "the run ended before its first trial"
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait() == 130
    assert time.monotonic() - start < 20
    assert "Traceback" not in rest
    assert "goes on from here" in rest
    assert not (tmp_path / "results").exists()


def test_real_data_that_is_absent_is_said_to_be(tmp_path: Path) -> None:
    done = run(tmp_path, "--populations", "polis-warm", "--data", str(tmp_path))
    assert done.returncode == 2
    assert f"polis-warm is skipped: no polis_ratings.parquet in {tmp_path}" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_benchmark_of_every_method(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    for population in POPULATIONS:
        methods = result(tmp_path, population)["methods"]
        assert len(methods) >= 9
        assert all("unseen/cold/16" in method["cells"] for method in methods.values())
