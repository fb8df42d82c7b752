from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raypref.config_file import load_config, parse_config
from raypref.tune.ledger import Ledger, Look, Record, Status
from raypref.tune.outcome import write_outcome
from raypref.tune.space import parameters
from tests.tune.conftest import Raw

SPACE: dict[str, Any] = {
    "method.bases": [2, 4],
    "method.recipe.lr": {"low": 0.001, "high": 0.1, "log": True},
    "method.recipe.context": [[0, 2], [0, 4]],
}


def record(number: int, status: Status, accuracies: list[float], bases: int, lr: float) -> Record:
    return Record(
        number=number,
        values={"method.bases": bases, "method.recipe.lr": lr, "method.recipe.context": [0, 2]},
        status=status,
        looks=[Look(rung=i, steps=3**i, accuracy=found, nll=0.5) for i, found in enumerate(accuracies)],
        seconds=1.5,
        message="training diverged at step 3" if status == "diverged" else None,
    )


def written(described: Raw, folder: Path) -> None:
    raw = described(SPACE)
    config = parse_config(dict(raw), [], "test")
    ledger = Ledger(folder / "trials.jsonl")
    for one in (
        record(0, "stopped", [0.9], 2, 0.01),
        record(1, "finished", [0.5, 0.6, 0.7], 2, 0.02),
        record(2, "diverged", [], 4, 0.1),
        record(3, "finished", [0.5, 0.6, 0.8], 4, 0.003),
    ):
        ledger.add(one)
    best = ledger.best()
    assert best is not None
    write_outcome(folder, raw, config.sweep, parameters(raw, config, "test"), ledger, best)


def test_the_best_run_is_one_that_training_takes(described: Raw, tmp_path: Path) -> None:
    written(described, tmp_path)
    config = load_config(tmp_path / "best.yaml", [])
    raw = described(SPACE)
    raw["method"] |= {"bases": 4}
    raw["method"]["recipe"] |= {"lr": 0.003, "context": [0, 2]}
    del raw["sweep"]
    assert config == parse_config(raw, [], "test")
    assert (tmp_path / "best.yaml").read_text().startswith("# Trial 3 of a sweep, accuracy 0.8000")


def test_the_table_has_every_trial_the_best_first(described: Raw, tmp_path: Path) -> None:
    written(described, tmp_path)
    table = pq.read_table(tmp_path / "trials.parquet").to_pydict()
    assert table["trial"] == [3, 1, 0, 2]
    assert table["status"] == ["finished", "finished", "stopped", "diverged"]
    assert table["accuracy"] == [0.8, 0.7, 0.9, None]
    assert table["method.bases"] == [4, 2, 2, 4]
    assert table["method.recipe.context"] == ["[0, 2]"] * 4
    assert table["message"][3] == "training diverged at step 3"
    text = (tmp_path / "trials.txt").read_text().splitlines()
    assert text[0] == "accuracy: unseen/cold/4"
    assert text[2].split() == ["3", "finished", "0.8000", "0.5000", "9", "1.5", "4", "0.003", "[0,", "2]"]
    assert text[5].split()[:5] == ["2", "diverged", "-", "-", "-"]


def test_there_is_a_figure_of_each_parameter_in_the_page(described: Raw, tmp_path: Path) -> None:
    written(described, tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    for name in SPACE:
        assert (tmp_path / "figures" / f"{name.replace('.', '-')}.pdf").read_bytes().startswith(b"%PDF")
        alt = f"Accuracy (unseen/cold/4) over {name}: 2 trials finished, 1 stopped before; best 0.800 at "
        assert alt in page
    assert page.count("<svg") == len(SPACE)
    assert "http" not in page
