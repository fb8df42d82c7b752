from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypref.config_file import parse_config
from raypref.errors import ConfigError
from raypref.tune.space import Choice, Parameter, Range, changed, configured, parameters

LR = "method.recipe.lr"


def checked(raw: dict[str, Any]) -> list[Parameter]:
    return parameters(raw, parse_config(dict(raw), [], "sweep.yaml"), "sweep.yaml")


def run(space: dict[str, Any], method: dict[str, Any] | None = None, **sweep: Any) -> dict[str, Any]:
    return {"method": method or {"type": "lore"}, "sweep": {"space": space, **sweep}}


def test_lists_and_ranges_are_read() -> None:
    found = checked(run({LR: {"low": "1e-3", "high": 1, "log": True}, "method.bases": [2, 4]}))
    assert found == [Range(LR, 0.001, 1, True, None), Choice("method.bases", [2, 4])]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (run({}), "sweep.space is empty"),
        (run({"method.recipe.lrr": [0.1]}), "method.recipe.lrr: 0.1: method.lore.recipe.lrr: unknown key"),
        (run({"method.latent": [4]}), "method.lore.latent: unknown key"),
        (run({"method.type": ["lore", "bt"], "method.bases": [2]}), "method.bt.bases: unknown key"),
        (run({"method.bases": [2, 0]}), "sweep.space.method.bases: 0: "),
        (run({LR: {"low": -1.0, "high": 1}}), "sweep.space.method.recipe.lr: -1.0: "),
        (run({"method.bases": {"low": 2.0, "high": 8.0}}), "valid integer"),
        (run({LR: {"low": 1, "high": 0.1}}), "low must be less than high"),
        (run({LR: {"low": 0.0, "high": 0.1, "log": True}}), "log needs low > 0"),
        (run({LR: []}), "at least 1 item"),
        (run({LR: 0.1}), "sweep.space.method.recipe.lr.range"),
        (run({LR: {"low": 0.1, "high": 1}}, sampler="grid"), "a grid needs `points`"),
        (run({"prepare.seed": [1]}), "the data stay the same"),
        (run({"method.": [1]}), "varies settings of `method` and `train`"),
        (run({"train.workers": [1, 2]}), "the same hardware"),
        (run({"method.recipe": [{"lr": 1}], LR: [1]}), "vary one or the other"),
        (run({"method.bases.deep": [1]}, {"type": "lore", "bases": 4}), "bases is a value, not a section"),
        (run({LR: [0.1]}, sampler="bayes"), "sweep.sampler"),
        (run({LR: [0.1]}, trials=0), "sweep.trials"),
    ],
)
def test_a_bad_space_is_refused_with_where_it_is(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(raw)
    assert str(refused.value).startswith("sweep.yaml: sweep")
    assert message in str(refused.value)


def test_a_variant_brings_its_own_defaults_as_with_set() -> None:
    raw = run({"method.solver": ["posterior", "adam"]})
    checked(raw)
    by_set = parse_config({"method": {"type": "lore"}}, ["method.solver=adam"], "set")
    assert configured(raw, {"method.solver": "adam"}, "trial").method == by_set.method
    other = configured(raw, {"method.type": "vrf"}, "trial").method
    assert other == parse_config({"method": {"type": "vrf"}}, [], "set").method


def test_what_is_changed_is_a_copy_without_the_sweep() -> None:
    raw = run({LR: [0.1]})
    found = changed(raw, {LR: 0.5, "train.seed": 3}, "trial")
    assert found == {"method": {"type": "lore", "recipe": {"lr": 0.5}}, "train": {"seed": 3}}
    assert raw == run({LR: [0.1]})


@given(
    low=st.integers(1, 50),
    more=st.integers(1, 100),
    log=st.booleans(),
    share=st.floats(0, 1),
    points=st.integers(2, 9),
)
def test_whole_ranges_give_whole_values_inside(
    low: int, more: int, log: bool, share: float, points: int
) -> None:
    whole = Range("method.bases", low, low + more, log, points)
    value = whole.at(share)
    assert isinstance(value, int)
    assert low <= value <= low + more
    grid = whole.grid()
    assert (grid[0], grid[-1]) == (low, low + more)
    assert list(grid) == sorted(set(grid))
    assert len(grid) <= points


@given(low=st.floats(1e-6, 1), factor=st.floats(1.01, 1e6), shares=st.lists(st.floats(0, 1), min_size=2))
def test_values_rise_with_the_share(low: float, factor: float, shares: list[float]) -> None:
    for log in (False, True):
        line = Range(LR, low, low * factor, log, None)
        values = [line.at(share) for share in sorted(shares)]
        assert values == sorted(values)
        assert low <= values[0]
        assert values[-1] <= low * factor


def test_a_log_range_is_even_in_the_logarithm() -> None:
    assert Range(LR, 0.01, 1.0, True, 3).grid() == pytest.approx([0.01, 0.1, 1.0])
    assert Range(LR, 0.0, 1.0, False, 3).grid() == [0.0, 0.5, 1.0]
    counts = [0, 0, 0, 0]
    for i in range(1000):
        counts[int(Range("method.bases", 1, 4, False, None).at((i + 0.5) / 1000)) - 1] += 1
    assert counts == [250, 250, 250, 250]
