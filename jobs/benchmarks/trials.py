"""Fits and evaluates methods on populations, each once, in parallel, and keeps what it found.

A trial's record is one JSON file, `WORK/trials/<sha256 of all that determines it>.json`: a run that was
killed goes on where it was, and two benchmarks that ask for one trial share it. What determines a trial is
its population, its seed, its method's resolved configuration, raypref's version and the method's source;
after a change elsewhere in raypref delete the folder. A trial that fails is recorded with its message, stops
no other, and is tried again by the next run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from adaptation import time_adaptation
from populations import Population, data_folder
from progress import Progress
from pydantic import ValidationError
from record import Record, Trial, cells, parameters

from raypref import __version__, files
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import RayprefError
from raypref.evaluate.protocol import evaluate
from raypref.methods.base import MethodConfig
from raypref.train.session import fit

TIMED_SEED = 0
"""Adaptation is timed on this seed only: time does not depend on who the users are."""

EVALUATE: dict[str, dict[str, Any]] = {
    "quick": {"shots": (0, 1, 4, 16), "seeds": (0,), "bootstrap": 20},
    "default": {"shots": (0, 1, 2, 4, 8, 16), "seeds": (0,), "bootstrap": 100},
    "full": {"shots": (0, 1, 2, 4, 8, 16, 32), "seeds": (0, 1, 2), "bootstrap": 1000},
}


def run_trials(
    trials: Sequence[Trial],
    work: Path,
    processes: int = 2,
    progress: bool = True,
    data: Path | None = None,
) -> list[Record]:
    """Return the record of every trial, in their order, running those that are not recorded yet.

    Args:
        trials: what to fit; equal ones are run once.
        work: folder for embeddings, populations and records.
        processes: trials at a time, each in a process of one thread.
        progress: show progress: a bar on a terminal, lines elsewhere.
        data: folder of real data; None takes the one that RAYPREF_REAL_DATA names.
    """
    data = data or data_folder()
    records: dict[int, Record] = {}
    refused: list[int] = []
    todo: dict[Path, list[int]] = {}
    for number, trial in enumerate(trials):
        try:
            path = work / "trials" / f"{_identity(trial, work, data)}.json"
        except RayprefError as error:
            records[number] = Record(trial=trial, error=str(error))
            refused.append(number)
            continue
        if path not in todo and (record := _stored(path)):
            records[number] = record.model_copy(update={"trial": trial})
        else:
            todo.setdefault(path, []).append(number)
    for trial in {trials[numbers[0]].population: trials[numbers[0]] for numbers in todo.values()}.values():
        _population(trial, work, data).embed()
    with Progress(len(trials), len(records) - len(refused), progress) as shown:
        for number in refused:
            shown.done(records[number])
        tasks = {path: trials[numbers[0]] for path, numbers in todo.items()}
        for path, record in _in_processes(tasks, work, data, processes):
            for number in todo[path]:
                records[number] = record.model_copy(update={"trial": trials[number]})
                shown.done(records[number])
    return [records[number] for number in range(len(trials))]


def configured(trial: Trial, items: Path | None = None, tables: Path | None = None) -> RunConfig:
    """Return the run that a trial is.

    Raises:
        ConfigError: the method is unknown, or its options are not its own.
    """
    raw = {
        "method": dict(trial.method),
        "train": {"seed": trial.seed, "patience": 0},
        "evaluate": EVALUATE[trial.size],
        "items": items and str(items),
        "tables": tables and str(tables),
    }
    return parse_config(raw, [], trial.label)


def _population(trial: Trial, work: Path, data: Path | None) -> Population:
    return Population(trial.population, trial.seed, trial.size, trial.planted, work, data)


def _identity(trial: Trial, work: Path, data: Path | None) -> str:
    config = configured(trial)
    determined = {
        "raypref": __version__,
        "population": _population(trial, work, data).identity,
        "seed": trial.seed,
        "source": _source(inspect.getmodule(type(config.method))),
        **{name: getattr(config, name).model_dump(mode="json") for name in ("method", "train", "evaluate")},
    }
    return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()


def _source(module: ModuleType | None) -> str:
    """Return a hash of a method's source and of what it takes from the other files of `raypref.methods`."""
    home = MethodConfig.__module__.rpartition(".")[0] + "."
    found: dict[str, str] = {}
    todo = [module]
    while todo:
        one = todo.pop()
        if one is None or one.__name__ in found:
            continue
        found[one.__name__] = inspect.getsource(one)
        used = {getattr(value, "__module__", None) or "" for value in vars(one).values()}
        todo += [sys.modules[name] for name in used if name.startswith(home)]
    return hashlib.sha256("".join(found[name] for name in sorted(found)).encode()).hexdigest()


def _stored(path: Path) -> Record | None:
    try:
        record = Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.error is None else None


def _in_processes(
    tasks: Mapping[Path, Trial], work: Path, data: Path | None, processes: int
) -> Iterator[tuple[Path, Record]]:
    """Yield trials' records as they come; Ctrl-C ends the processes at once."""
    if not tasks:
        return
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=context, initializer=_begin)
    try:
        waiting: dict[Future[Record], Path] = {
            pool.submit(_run, trial, path, work, data): path for path, trial in tasks.items()
        }
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


def _begin() -> None:
    # The parent hears Ctrl-C and ends its children; a child's own traceback would tell nothing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run(trial: Trial, path: Path, work: Path, data: Path | None) -> Record:
    """Run a trial and write its record; a failure is a record too."""
    try:
        record = _measure(trial, work, data)
    except RayprefError as error:
        record = Record(trial=trial, error=str(error))
    except Exception as error:
        traceback.print_exc()
        record = Record(trial=trial, error=f"{type(error).__name__}: {error}")
    files.write_text(path, record.model_dump_json() + "\n")
    return record


def _measure(trial: Trial, work: Path, data: Path | None) -> Record:
    prepared = _population(trial, work, data).prepare()
    config = configured(trial, prepared.items, prepared.tables)
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    start = time.perf_counter()
    bundle = fit(config, items, tables)
    fitted = time.perf_counter()
    evaluation = evaluate(bundle.model, items, tables, config.evaluate)
    evaluated = time.perf_counter()
    return Record(
        trial=trial,
        method=config.method.model_dump(mode="json"),
        parameters=parameters(config.method, bundle.model.dims),
        seen_users=tables.metadata.seen_users,
        fit_seconds=fitted - start,
        evaluate_seconds=evaluated - fitted,
        steps=bundle.info.steps,
        cells=cells(evaluation),
        adaptation=time_adaptation(bundle.model, items, tables) if trial.seed == TIMED_SEED else [],
    )
