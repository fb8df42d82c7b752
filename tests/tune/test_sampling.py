from __future__ import annotations

import itertools
import math
import sys

import pytest

from raypref.config import SweepConfig
from raypref.errors import ConfigError
from raypref.tune.ledger import Look, Record, Status
from raypref.tune.sampling import Grid, Optuna, Random, Sampler, sampler
from raypref.tune.space import Choice, Range, Values

LR = "method.recipe.lr"
SPACE = [Choice("method.solver", ["posterior", "adam"]), Range(LR, 1e-3, 1.0, True, 3)]


def over(number: int, values: Values, accuracy: float, status: Status = "finished") -> Record:
    looks = [Look(rung=0, steps=1, accuracy=accuracy / 2, nll=0.6)]
    if status == "finished":
        looks.append(Look(rung=1, steps=3, accuracy=accuracy, nll=0.6))
    if status in ("failed", "diverged"):
        looks = []
    return Record(number=number, values=values, status=status, looks=looks, seconds=1.0)


def quality(values: Values) -> float:
    """Best at adam and 0.03."""
    return (0.2 if values["method.solver"] == "adam" else 0.0) + 0.7 * math.exp(
        -(math.log(values[LR] / 0.03) ** 2)
    )


def best_of(sampler: Sampler, first: int, last: int) -> float:
    found = 0.0
    for number in range(first, last):
        values = sampler.propose(number)
        found = max(found, quality(values))
        sampler.tell(over(number, values, quality(values)))
    return found


def test_a_grid_has_every_combination_once() -> None:
    grid = Grid(SPACE)
    found = [tuple(grid.propose(number).values()) for number in range(grid.trials)]
    assert found == list(itertools.product(["posterior", "adam"], SPACE[1].grid()))


def test_draws_depend_on_seed_and_number_alone() -> None:
    some, more = Random(SPACE, 5, 0), Random(SPACE, 500, 0)
    drawn = [more.propose(number) for number in range(500)]
    assert [some.propose(number) for number in reversed(range(5))] == drawn[4::-1]
    assert Random(SPACE, 5, 1).propose(0) != drawn[0]
    assert sum(values["method.solver"] == "adam" for values in drawn) == pytest.approx(250, abs=50)
    assert sum(values[LR] < 0.1 for values in drawn) == pytest.approx(333, abs=50)


def test_optuna_learns_from_what_it_is_told() -> None:
    seeds = range(5)
    learnt = [best_of(Optuna(SPACE, 40, seed, []), 0, 40) for seed in seeds]
    drawn = [best_of(Random(SPACE, 40, seed), 0, 40) for seed in seeds]
    assert sum(learnt) > sum(drawn)
    assert min(learnt) > 0.85


def test_optuna_goes_on_with_what_was_found_and_repeats_no_draw() -> None:
    first = Optuna(SPACE, 40, 0, [])
    records: list[Record] = []
    for number in range(20):
        values = first.propose(number)
        status: Status = ("finished", "finished", "stopped", "diverged")[number % 4]
        records.append(over(number, values, quality(values), status))
        first.tell(records[-1])
    again = Optuna(SPACE, 40, 0, records)
    known = {record.values[LR] for record in records}
    proposed = [again.propose(number)[LR] for number in range(20, 24)]
    assert known.isdisjoint(proposed)
    assert best_of(again, 24, 40) > 0.85


def test_optuna_keeps_values_that_are_no_numbers() -> None:
    contexts = [[0, 4], [0, 8]]
    space = [Choice("method.recipe.context", contexts), Range("method.bases", 2, 16, True, None)]
    found = [Optuna(space, 4, seed, []).propose(0) for seed in range(20)]
    assert {tuple(values["method.recipe.context"]) for values in found} == {(0, 4), (0, 8)}
    assert all(isinstance(values["method.bases"], int) for values in found)


def test_optuna_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="raypref\\[sweep\\]"):
        sampler(SweepConfig(sampler="optuna"), SPACE, [])
