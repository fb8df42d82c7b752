"""Evaluate on a whole population: groups of users are judged in actors, and tallied where they meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raypref.cluster import connected
from raypref.config import RunConfig
from raypref.evaluate.result import Evaluation
from raypref.evaluate.run import evaluate_bundles
from raypref.population.stream import in_actors
from raypref.schema import TablesMetadata, read_metadata

ALONE = 20_000
"""Users up to which one process is faster than starting workers."""


def evaluate_population(config: RunConfig, directories: Sequence[Path]) -> dict[str, Evaluation]:
    """Do what `evaluate_bundles` does, with `population.workers` workers where there are many users.

    The figures are the same.
    """
    counts = read_metadata(config.tables_dir, TablesMetadata)
    if counts.seen_users + counts.unseen_users <= ALONE:
        return evaluate_bundles(config, directories)
    spread = partial(judge_in_actors, config.population.workers)
    with connected():
        return evaluate_bundles(config.absolute(), [path.absolute() for path in directories], spread)


def judge_in_actors(
    workers: int | None, judge: Callable[[range], Iterable[Any]], groups: Iterable[range]
) -> Iterable[list[Any]]:
    """Call `judge` for each group of buckets in actors; the results come in the order of the groups."""
    return in_actors(list(groups), partial(_Judging, judge), workers, in_order=True)


class _Judging:
    def __init__(self, judge: Callable[[range], Iterable[Any]]) -> None:
        self._judge = judge

    def __call__(self, buckets: range) -> list[Any]:
        return list(self._judge(buckets))
