"""What Ray Tune is told: a trial that goes from look to look, who proposes the next, who writes it down."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from tensorboardX import SummaryWriter
from tqdm import tqdm

from raypref.config import RunConfig, SweepConfig
from raypref.errors import ConfigError, DivergedError
from raypref.train.trackers import TrackerName, open_trackers
from raypref.tune.launched import launched
from raypref.tune.ledger import Ledger, Look, Record
from raypref.tune.sampling import Sampler
from raypref.tune.space import configured
from raypref.tune.trial import looks

NUMBER = "number"
"""Key of a trial's number in its Tune configuration, beside its values."""
BUDGET = "budget"
"""What early stopping counts: `reduction` to the power of the rung."""
METRIC = "accuracy"

LOG = logging.getLogger(__name__)


def packed(config: RunConfig) -> bool:
    """Return whether a run's trials run inside worker processes that live for the whole sweep."""
    return config.train.most_workers == 1


def trial_name(number: int) -> str:
    """Return what a trial is called on disk."""
    return f"trial-{number:04d}"


class Trial(tune.Trainable):
    """Goes to the next look at each step; its process lives for many trials, so that one costs its work."""

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, config: dict[str, Any], raw: Mapping[str, Any], folder: str
    ) -> None:
        """Take the run that all trials change, its paths absolute, and the folder of the sweep."""
        self._raw, self._folder = raw, Path(folder)
        self._sweep = SweepConfig.model_validate(raw["sweep"])
        self.reset_config(config)
        # As `raypref train` does.
        torch.set_num_threads(max(1, int(self._cpus)))
        torch.use_deterministic_algorithms(True, warn_only=True)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process."""
        values = dict(new_config)
        name = trial_name(values.pop(NUMBER))
        config = configured(self._raw, values, name)
        self._seconds, self._cpus = 0.0, config.train.cpus_per_worker
        self._looks: Iterator[Look] = (
            looks(config, self._sweep)
            if packed(config)
            else launched(config, self._sweep, self._folder / name)
        )
        return True

    def step(self) -> dict[str, Any]:
        """Return the next look; what goes wrong ends the trial, not the process."""
        start = time.perf_counter()
        try:
            look = next(self._looks)
            ended = look.rung == self._sweep.rungs
            found = {
                **look.model_dump(),
                BUDGET: self._sweep.reduction**look.rung,
                "done": ended,
                # What the trial is if it ends with this look.
                "status": "finished" if ended else "stopped",
                "message": None,
            }
        except DivergedError as error:
            found = {"done": True, "status": "diverged", "message": str(error)}
        except Exception as error:
            found = {"done": True, "status": "failed", "message": f"{type(error).__name__}: {error}"}
        self._seconds += time.perf_counter() - start
        return {**found, "seconds": self._seconds}


class Proposals(Searcher):
    """Hands Tune the trials that are not over yet."""

    def __init__(
        self, numbers: Sequence[int], raw: Mapping[str, Any], sampler: Sampler, ledger: Ledger
    ) -> None:
        """Propose the trials of these numbers, as changes of `raw`."""
        super().__init__(metric=METRIC, mode="max")
        self._numbers = list(numbers)
        self._raw, self._sampler, self._ledger = raw, sampler, ledger

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial; values that do not go together are written down and passed over."""
        while self._numbers:
            number = self._numbers.pop(0)
            values = self._sampler.propose(number)
            try:
                configured(self._raw, values, trial_name(number))
            except ConfigError as error:
                record = Record(
                    number=number, values=values, status="failed", looks=[], seconds=0.0, message=str(error)
                )
                self._ledger.add(record)
                self._sampler.tell(record)
                continue
            return {NUMBER: number, **values}
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Leave it to `Recorder`, which knows how the trial went."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: what a sweep knows is in its ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class Recorder(tune.Callback):
    """Writes each trial into TensorBoard as it goes, and into the ledger and trackers when it is over."""

    def __init__(
        self, folder: Path, sampler: Sampler, ledger: Ledger, trackers: Sequence[TrackerName], home: Path
    ) -> None:
        """Write below the folder of the sweep, and give trackers what they keep below the run's, `home`."""
        self._folder, self._sampler, self._ledger = folder, sampler, ledger
        self._trackers, self._home = trackers, home
        self._looks: dict[int, list[Look]] = {}

    def setup(self, *args: Any, **info: Any) -> None:
        """Begin: Tune has made its copies of what can be copied."""
        self._boards: dict[int, SummaryWriter] = {}
        total, over = self._sampler.trials, len(self._ledger.over)
        self._bar = (
            tqdm(total=total, initial=over, unit="trial", desc="sweep") if sys.stderr.isatty() else None
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take note of a look."""
        if METRIC not in result:
            return
        number = trial.config[NUMBER]
        look = Look.model_validate({name: result[name] for name in Look.model_fields})
        done = self._looks.setdefault(number, [])
        if not done or look.rung <= done[-1].rung:
            # The first look, or the first after a worker was lost.
            self._looks[number] = done = []
            if number in self._boards:
                self._boards[number].close()
            shutil.rmtree(self._board_folder(number), ignore_errors=True)
            self._boards[number] = SummaryWriter(str(self._board_folder(number)))
        done.append(look)
        for name in ("accuracy", "nll"):
            self._boards[number].add_scalar(f"unseen/{name}", getattr(look, name), look.steps)
        self._boards[number].flush()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write a trial down that ended, or that early stopping ended."""
        last = trial.last_result
        self._close(trial, last["status"], last["seconds"], last["message"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write a trial down whose worker was lost once too often."""
        seconds = (trial.last_result or {}).get("seconds", 0.0)
        self._close(trial, "failed", seconds, f"its worker was lost: {type(trial.get_error()).__name__}")

    def _close(self, trial: Any, status: str, seconds: float, message: str | None) -> None:
        values = dict(trial.config)
        number = values.pop(NUMBER)
        record = Record.model_validate(
            {
                "number": number,
                "values": values,
                "status": status,
                "looks": self._looks.pop(number, []),
                "seconds": seconds,
                "message": message,
            }
        )
        self._ledger.add(record)
        self._sampler.tell(record)
        self._track(record)
        if board := self._boards.pop(number, None):
            plain = {path: _plain(value) for path, value in values.items()}
            board.add_hparams(plain, {"accuracy": record.looks[-1].accuracy}, name=".")
            board.close()
        shutil.rmtree(self._folder / trial_name(number), ignore_errors=True)
        self._show(record)

    def _track(self, record: Record) -> None:
        """Give trackers a trial as a run of its own, the same if it is tried again."""
        title = f"sweep-{self._folder.name}-{trial_name(record.number)}"
        try:
            opened = open_trackers(self._trackers, self._home, title, record.values, "sweep.trackers")
        except ConfigError as error:
            LOG.warning("%s No trial from %d on is tracked.", error, record.number)
            self._trackers = ()
            return
        for tracker in opened:
            for look in record.looks:
                tracker.log(
                    look.steps, {f"unseen/{name}": getattr(look, name) for name in ("accuracy", "nll")}
                )
            tracker.close()

    def _show(self, record: Record) -> None:
        if self._bar is None:
            accuracy = round(record.last.accuracy, 4) if record.last else None
            shown = {"trial": record.number, "status": record.status, "accuracy": accuracy, **record.values}
            sys.stderr.write(json.dumps(shown) + "\n")
            return
        self._bar.update()
        if best := self._ledger.best():
            self._bar.set_postfix(best=f"{best.looks[-1].accuracy:.4f}")
        if len(self._ledger.records) == self._sampler.trials:
            self._bar.close()

    def _board_folder(self, number: int) -> Path:
        return self._folder / "tensorboard" / trial_name(number)


def stopping(sweep: SweepConfig, records: Sequence[Record]) -> TrialScheduler:
    """Return the early stopping of a sweep, which knows the trials of `records`."""
    if sweep.rungs == 0:
        return FIFOScheduler()
    scheduler = AsyncHyperBandScheduler(
        time_attr=BUDGET,
        metric=METRIC,
        mode="max",
        max_t=sweep.reduction**sweep.rungs,
        reduction_factor=sweep.reduction,
    )
    known: Any = scheduler
    for record in records:
        # Of a trial, the scheduler looks at the name alone.
        trial = SimpleNamespace(trial_id=trial_name(record.number))
        known.on_trial_add(None, trial)
        for look in record.looks:
            result = {BUDGET: sweep.reduction**look.rung, METRIC: look.accuracy}
            known.on_trial_result(None, trial, result)
    return scheduler


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
