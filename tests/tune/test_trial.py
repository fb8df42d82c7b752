from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypref.config import SweepConfig
from raypref.config_file import parse_config
from raypref.data import tables as reading
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import DivergedError
from raypref.evaluate.protocol import evaluate
from raypref.methods import METHODS
from raypref.train.session import fit
from raypref.tune.ledger import Look
from raypref.tune.trial import looks, opened, rungs
from tests.tune.conftest import Raw

METHOD_NAMES = [method.model_fields["type"].default for method in METHODS if not method().needs_prompts]


@pytest.fixture(autouse=True)
def _fresh(one_thread: None) -> Iterator[None]:
    yield
    opened.cache_clear()


def looked(raw: dict[str, Any]) -> list[Look]:
    config = parse_config(dict(raw), [], "test")
    return list(looks(config, config.sweep))


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_a_trial_says_what_training_and_evaluating_say(name: str, described: Raw) -> None:
    raw = described({}, {"type": name, "recipe": {"steps": 18}}, rungs=2)
    config = parse_config(dict(raw), [], "test")
    found = looked(raw)
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    cell = evaluate(fit(config, items, tables).model, items, tables, config.evaluate).cell(
        "unseen", "cold", 4
    )
    assert cell is not None
    assert [(look.rung, look.steps) for look in found] == [(0, 2), (1, 6), (2, 18)]
    assert found[-1].accuracy == cell.accuracy_per_user.mean
    assert found[-1].nll == pytest.approx(cell.nll, rel=1e-12)
    assert looked({**raw, "sweep": {**raw["sweep"], "rungs": 0}})[-1] == found[-1].model_copy(
        update={"rung": 0}
    )


def test_a_look_is_at_the_best_weights_so_far(described: Raw) -> None:
    raw = described({}, rungs=1, reduction=3)
    short = {**raw, "method": {"type": "lore", "recipe": {"steps": 6, "schedule": "constant", "warmup": 0.0}}}
    long = {**raw, "method": {"type": "lore", "recipe": {"steps": 18, "schedule": "constant", "warmup": 0.0}}}
    ended = looked({**short, "sweep": {**raw["sweep"], "rungs": 0}})[-1]
    assert looked(long)[0] == ended


def test_without_shots_everybody_is_the_population(described: Raw) -> None:
    raw = described({}, rungs=0)
    found = looked({**raw, "sweep": {**raw["sweep"], "shots": 0}})[-1]
    config = parse_config(dict(raw), [], "test")
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    cell = evaluate(fit(config, items, tables).model, items, tables, config.evaluate).cell(
        "unseen", "cold", 0
    )
    assert cell is not None
    assert found.accuracy == cell.accuracy_per_user.mean


def test_early_stopping_of_training_ends_a_trial_at_the_last_rung(described: Raw) -> None:
    raw = described({}, {"type": "lore", "recipe": {"steps": 300, "lr": 0.5}}, rungs=2)
    raw["train"] = {"validate_every": 1, "patience": 1}
    found = looked(raw)
    assert found[-1].rung == 2
    assert found[-1].steps < 300


def test_what_trials_share_is_read_once(described: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = reading._read

    def counted(path: Path, schema: Any) -> Any:
        read.append(path)
        return original(path, schema)

    monkeypatch.setattr(reading, "_read", counted)
    raw = described({}, rungs=1)
    looked(raw)
    first = len(read)
    looked({**raw, "method": {"type": "vrf", "recipe": {"steps": 6}}})
    assert len(read) == first > 0
    config = parse_config(dict(raw), [], "test")
    assert opened(config.items_dir, config.tables_dir)[0] is opened(config.items_dir, config.tables_dir)[0]


def test_a_trial_that_diverges_says_so(described: Raw) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        looked(described({}, {"type": "lore", "recipe": {"steps": 18, "lr": 1e30}}))


@given(steps=st.integers(1, 5000), count=st.integers(0, 4), reduction=st.integers(2, 5))
def test_rungs_rise_by_the_reduction_and_stand_before_the_end(steps: int, count: int, reduction: int) -> None:
    found = rungs(SweepConfig(rungs=count, reduction=reduction), steps)
    assert len(found) <= count
    assert all(later == reduction * earlier for earlier, later in itertools.pairwise(found))
    assert all(1 <= step < steps for step in found)
    if steps >= reduction**count:
        assert len(found) == count
        # The last stands at about 1/reduction of the end.
        assert not found or steps / reduction - reduction**count <= found[-1] <= steps / reduction
