"""What is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raypref import cli
from raypref.errors import ConfigError, InputError, RayprefError
from raypref.train import trackers
from raypref.tune import run
from raypref.tune.ledger import Ledger, Record
from raypref.tune.run import sweep
from raypref.tune.search import Proposals
from raypref.tune.space import Values
from tests.tune.conftest import Raw

SPACE = {"method.recipe.lr": [0.01, 0.02]}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(run, "connected", connected)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"sweep": {}}, ConfigError, "sweep.space is empty"),
        ({"tables": "/nowhere"}, InputError, "/nowhere"),
        ({"items": "/nowhere"}, InputError, "/nowhere"),
        ({"sweep": {"space": SPACE, "setting": "warm"}}, InputError, "no unseen users with warm comparisons"),
        ({"sweep": {"space": SPACE, "shots": -1}}, ConfigError, "sweep.shots"),
        ({"sweep": {"space": SPACE, "reduction": 1}}, ConfigError, "sweep.reduction"),
        ({"sweep": {"space": SPACE, "max_concurrent_trials": 0}}, ConfigError, "sweep.max_concurrent_trials"),
        ({"sweep": {"space": SPACE, "gpu_share": 1.5}}, ConfigError, "sweep.gpu_share"),
        ({"sweep": {"space": SPACE, "samples": 3}}, ConfigError, "sweep.samples: unknown key"),
        ({"sweep": {"space": SPACE, "trackers": ["comet"]}}, ConfigError, "sweep.trackers"),
        (
            {"sweep": {"space": SPACE, "gpu_share": 0.5}, "train": {"workers": 2, "use_gpu": True}},
            ConfigError,
            "each take a whole GPU",
        ),
        ({"train": {"mode": "federated"}}, ConfigError, "a sweep trains in one place"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(
    change: dict[str, Any], kind: type[RayprefError], message: str, described: Raw
) -> None:
    raw = {**described(SPACE), **change}
    with pytest.raises(kind, match=message):
        sweep(raw, "sweep.yaml")
    assert not Path(raw["dir"]).exists()


def test_a_tracker_that_is_missing_is_said(described: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed; pip install 'raypref\\[tracking\\]'"):
        sweep(described(SPACE, trackers=["wandb"]), "sweep.yaml")


def test_the_command_line_says_what_is_wrong(
    described: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(described(SPACE)))
    assert cli.main(["sweep", "-c", str(path), "--set", "sweep.space={method.recipe.lrr: [1]}"]) == 2
    assert f"raypref: {path}: sweep.space.method.recipe.lrr: 1: " in capsys.readouterr().err


class Stub:
    """Proposes a value that is none, then one that is."""

    trials = 2

    def __init__(self) -> None:
        self.told: list[Record] = []

    def propose(self, number: int) -> Values:
        return {"method.bases": number}

    def tell(self, record: Record) -> None:
        self.told.append(record)


def test_values_that_do_not_go_together_fail_alone(described: Raw, tmp_path: Path) -> None:
    ledger, stub = Ledger(tmp_path / "trials.jsonl"), Stub()
    proposals = Proposals([0, 1], described(SPACE), stub, ledger)
    assert proposals.suggest("a") == {"number": 1, "method.bases": 1}
    assert proposals.suggest("b") == Proposals.FINISHED
    (record,) = stub.told
    assert (record.number, record.status) == (0, "failed")
    assert record.message is not None
    assert "method.lore.bases" in record.message
    assert Ledger(tmp_path / "trials.jsonl").records == {0: record}
