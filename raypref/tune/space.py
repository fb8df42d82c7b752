"""What a sweep varies: settings by their dotted paths, and the values each may take."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raypref.config import RangeConfig, RunConfig
from raypref.config_file import parse_config, set_value
from raypref.errors import ConfigError

SECTIONS = ("method.", "train.")
"""What trials on the same data may differ in."""

HARDWARE = ("train.workers", "train.cpus_per_worker", "train.use_gpu", "train.max_failures")
"""What all trials have in common."""

INSIDE = 0.38
"""A share of a range that no whole number of few steps hits: values between the ends are tried too."""


@dataclass(frozen=True)
class Choice:
    """A setting and the values that it may take."""

    path: str
    values: Sequence[Any]

    def at(self, share: float) -> Any:
        """Return the value at a share of the list, 0 ≤ share < 1."""
        return self.values[int(share * len(self.values))]

    def grid(self) -> Sequence[Any]:
        """Return the values of a grid."""
        return self.values

    def samples(self) -> Sequence[Any]:
        """Return values that must be valid for all to be."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A setting and the ends between which its values lie."""

    path: str
    low: int | float
    high: int | float
    log: bool
    points: int | None

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> int | float:
        """Return the value at a share of the range, 0 ≤ share ≤ 1; whole numbers have equal parts of it."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = round(value) if self.whole else value
        # Rounding may step over an end.
        return min(max(value, self.low), self.high)

    def grid(self) -> Sequence[int | float]:
        """Return the values of a grid, both ends and evenly between."""
        points = self.points or 0
        values = [self.at(i / (points - 1)) for i in range(points)]
        return list(dict.fromkeys(values))

    def samples(self) -> Sequence[int | float]:
        """Return values that must be valid for all to be."""
        return [self.low, self.at(INSIDE), self.high]


Parameter = Choice | Range
Values = dict[str, Any]
"""A value for each parameter, by path."""


def parameters(raw: Mapping[str, Any], config: RunConfig, where: str) -> list[Parameter]:
    """Return the checked space of a sweep.

    Every value of a list is tried, and both ends of a range and a value inside, each beside the first values
    of the others.

    Args:
        raw: the run as it was written, without defaults; what trials change.
        config: the same, checked.
        where: what messages begin with.

    Raises:
        ConfigError: the space is empty, a path is unknown, not for sweeps, or inside another one, the method
            has no such setting, it does not take a value, or a grid has a range without points.
    """
    found: list[Parameter] = []
    for path, values in config.sweep.space.items():
        at = f"{where}: sweep.space.{path}"
        _require_free(path, config, at)
        if isinstance(values, RangeConfig):
            if config.sweep.sampler == "grid" and values.points is None:
                raise ConfigError(f"{at}: a grid needs `points`, or a list of values.")
            found.append(Range(path, values.low, values.high, values.log, values.points))
        else:
            found.append(Choice(path, values))
    if not found:
        raise ConfigError(
            f"{where}: sweep.space is empty. Name settings to vary, such as "
            "`sweep: {space: {method.recipe.lr: [0.003, 0.01, 0.03]}}`."
        )
    first = {parameter.path: parameter.samples()[0] for parameter in found}
    for parameter in found:
        for value in parameter.samples():
            configured(
                raw, {**first, parameter.path: value}, f"{where}: sweep.space.{parameter.path}: {value}"
            )
    return found


def _require_free(path: str, config: RunConfig, at: str) -> None:
    if not all(path.split(".")) or not path.startswith(SECTIONS):
        raise ConfigError(f"{at}: a sweep varies settings of `method` and `train`; the data stay the same.")
    if path in HARDWARE:
        raise ConfigError(f"{at}: all trials have the same hardware; set it once, in the section `train`.")
    for other in config.sweep.space:
        if other.startswith(f"{path}."):
            raise ConfigError(f"{at}: {other} is a part of it; vary one or the other.")


def configured(raw: Mapping[str, Any], values: Values, where: str) -> RunConfig:
    """Return the run of a trial.

    Raises:
        ConfigError: the values do not go together.
    """
    return parse_config(changed(raw, values, where), [], where)


def changed(raw: Mapping[str, Any], values: Values, where: str) -> dict[str, Any]:
    """Return a run as it was written, with a trial's values and without its sweep.

    Raises:
        ConfigError: a path leads through a value.
    """
    mapping = copy.deepcopy({name: section for name, section in raw.items() if name != "sweep"})
    # A variant's name comes before its settings.
    for path, value in sorted(values.items()):
        try:
            set_value(mapping, path, copy.deepcopy(value))
        except ConfigError as error:
            raise ConfigError(f"{where}: {path}: {error}") from error
    return mapping


def word(value: Any) -> str:
    """Return a value as tables and figures show it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
