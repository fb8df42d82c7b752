"""Samplers: which values a trial has, by its number, and what is learnt from the trials before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from raypref.config import SweepConfig
from raypref.errors import ConfigError
from raypref.tune.ledger import Record
from raypref.tune.space import Choice, Parameter, Values


class Sampler(Protocol):
    """Proposes values and is told what came of them."""

    trials: int
    """How many trials the sweep has."""

    def propose(self, number: int) -> Values:
        """Return the values of a trial."""
        ...

    def tell(self, record: Record) -> None:
        """Take note of a trial that is over."""
        ...


def sampler(config: SweepConfig, space: Sequence[Parameter], records: Sequence[Record]) -> Sampler:
    """Return the sampler that a sweep names; `records` are of trials that are over.

    Raises:
        ConfigError: Optuna is not installed.
    """
    if config.sampler == "grid":
        return Grid(space)
    if config.sampler == "random":
        return Random(space, config.trials, config.seed)
    return Optuna(space, config.trials, config.seed, records)


class Grid:
    """Every combination once; the last parameter changes first."""

    def __init__(self, space: Sequence[Parameter]) -> None:
        """Span a grid."""
        self._axes = {parameter.path: parameter.grid() for parameter in space}
        self.trials = math.prod(len(values) for values in self._axes.values())

    def propose(self, number: int) -> Values:
        """Return the values at a point of the grid."""
        values: Values = {}
        for path, axis in reversed(self._axes.items()):
            number, place = divmod(number, len(axis))
            values[path] = axis[place]
        return {path: values[path] for path in self._axes}

    def tell(self, record: Record) -> None:
        """Learn nothing."""


class Random:
    """Independent draws; those of a trial depend on the seed and its number alone."""

    def __init__(self, space: Sequence[Parameter], trials: int, seed: int) -> None:
        """Draw `trials` times from a space."""
        self._space, self._seed = space, seed
        self.trials = trials

    def propose(self, number: int) -> Values:
        """Return the values of a draw."""
        shares = np.random.default_rng([self._seed % 2**64, number]).random(len(self._space))
        return {
            parameter.path: parameter.at(float(share))
            for parameter, share in zip(self._space, shares, strict=True)
        }

    def tell(self, record: Record) -> None:
        """Learn nothing."""


class Optuna:
    """Optuna's tree-structured Parzen estimator; trials under way count as poor, so that none is repeated."""

    def __init__(self, space: Sequence[Parameter], trials: int, seed: int, records: Sequence[Record]) -> None:
        """Begin a study that knows the trials of `records`.

        Raises:
            ConfigError: Optuna is not installed.
        """
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "sweep.sampler: optuna is not installed; pip install 'raypref[sweep]', or take `random`."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.trials = trials
        self._choices = {p.path: p.values for p in space if isinstance(p, Choice)}
        # By place in the list: Optuna takes no lists and no mappings for values.
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            p.path: optuna.distributions.CategoricalDistribution(range(len(p.values)))
            if isinstance(p, Choice)
            else optuna.distributions.IntDistribution(int(p.low), int(p.high), log=p.log)
            if p.whole
            else optuna.distributions.FloatDistribution(p.low, p.high, log=p.log)
            for p in space
        }
        # A sweep that goes on must not draw the first run's numbers again.
        drawn = (seed + 1_000_003 * len(records)) % 2**32
        self._study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
        )
        self._asked: dict[int, optuna.Trial] = {}
        states = optuna.trial.TrialState
        self._states = {"finished": states.COMPLETE, "stopped": states.PRUNED}
        self._no_figure = states.FAIL
        for record in records:
            places = {path: values.index(record.values[path]) for path, values in self._choices.items()}
            self._study.enqueue_trial({**record.values, **places})
            self._asked[record.number] = self._study.ask(self._distributions)
            self.tell(record)

    def propose(self, number: int) -> Values:
        """Return what Optuna suggests after all it was told."""
        trial = self._asked[number] = self._study.ask(self._distributions)
        chosen = {path: values[trial.params[path]] for path, values in self._choices.items()}
        return {**trial.params, **chosen}

    def tell(self, record: Record) -> None:
        """Tell the study: pruned where a trial was stopped, failed where it gave no figure."""
        trial = self._asked.pop(record.number)
        for look in record.looks:
            trial.report(look.accuracy, look.rung)
        finished = record.looks[-1].accuracy if record.status == "finished" else None
        self._study.tell(trial, finished, self._states.get(record.status, self._no_figure))
