"""A trial that is too large for one process: it launches `raypref train`, and looks at its checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from raypref.config import RunConfig, SweepConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import CorruptError, InputError
from raypref.train.loop import TrainState
from raypref.train.session import ended
from raypref.train.trainer import run, run_directory
from raypref.tune.ledger import Look
from raypref.tune.trial import look, opened, rungs

POLL_S = 1.0
"""Seconds between looks for a new checkpoint."""

STEP = "step-"
"""What the folders of checkpoints are called, before the step."""


def launched(config: RunConfig, sweep: SweepConfig, folder: Path) -> Iterator[Look]:
    """Train a setting on Ray Train's workers and yield the looks at it, the last after its end.

    Started again in the same folder, training goes on from its last checkpoint. Ending this process ends it.

    Args:
        config: the trial, with absolute paths.
        sweep: how the trial is judged.
        folder: where training keeps its checkpoints.

    Raises:
        DivergedError: training left the finite numbers.
        InputError: a score is not finite.
    """
    items, tables = opened(config.items_dir, config.tables_dir)
    items = items.with_prompts(config.method.needs_prompts)
    steps = rungs(sweep, config.method.recipe.steps)
    own: dict[str, object] = {"dir": folder, "bundle": None, "report": None}
    if steps:
        # Every rung is a multiple of the first.
        own["train"] = config.train.model_copy(update={"checkpoint_every": steps[0]})
    config = config.model_copy(update=own)
    training = _Training(config)
    training.start()
    for rung, step in enumerate(steps):
        state = training.reached(step, items, tables)
        if state is None or state.stopped or state.step == config.method.recipe.steps:
            break
        yield look(rung, state, config, sweep, items, tables)
    training.join()
    if training.error is not None:
        raise training.error
    state = _checkpoint(config, items, tables, 0)
    if state is None:
        raise InputError(f"{folder}: training ended without a checkpoint.")
    yield look(sweep.rungs, state, config, sweep, items, tables)


class _Training(threading.Thread):
    """Runs the training while its checkpoints are looked at; no reason for a process to stay alive."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(name="training", daemon=True)
        self._config = config
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            run(self._config)
        except BaseException as error:
            self.error = error

    def reached(self, step: int, items: ItemTable, tables: Tables) -> TrainState | None:
        """Return the state of the last checkpoint at `step` or later, None where training ended before."""
        while True:
            alive = self.is_alive()
            if (state := _checkpoint(self._config, items, tables, step)) is not None or not alive:
                return state
            self.join(POLL_S)


def _checkpoint(config: RunConfig, items: ItemTable, tables: Tables, step: int) -> TrainState | None:
    """Return the weights of the last checkpoint at `step` or later that is whole, None without one."""
    folders = {
        int(path.name.removeprefix(STEP)): path for path in run_directory(config, tables).glob(f"{STEP}*")
    }
    for _, path in sorted(((at, path) for at, path in folders.items() if at >= step), reverse=True):
        try:
            return ended(config, items, tables, path)
        except (CorruptError, InputError, OSError):
            # Still being written, or already gone.
            continue
    return None
