"""A whole sweep: check it, try what was not tried yet, write down what is best."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raypref import files
from raypref.cluster import connected
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import ConfigError, InputError
from raypref.train.trackers import require_trackers
from raypref.tune.ledger import Ledger, Record
from raypref.tune.outcome import write_outcome
from raypref.tune.sampling import Sampler, sampler
from raypref.tune.search import Proposals, Recorder, Trial, packed, stopping
from raypref.tune.space import parameters

LAUNCHER_BYTES = 512 * 2**20
"""Memory of a trial whose work is done by Ray Train's workers; no CPUs, which these count as theirs."""


def sweep(raw: Mapping[str, Any], where: str) -> tuple[Path, Record]:
    """Try the settings that a run's section `sweep` names, and write the outcome to DIR/sweep.

    Trials that are over are not run again: the same sweep over the same tables goes on where a killed one
    stopped. A trial that diverges or fails is recorded as such; one that failed is tried again next time.

    Args:
        raw: the run as it was written; defaults follow from it trial by trial.
        where: what messages about it begin with.

    Returns:
        Where the outcome is, and the best trial.

    Raises:
        ConfigError: the run, its space or its sampler is not valid; see `parameters`.
        InputError: the tables are missing, have no seen users or no unseen ones to judge by, or no trial
            finished.
        MismatchError: items and comparisons are of different embedders.
    """
    config = parse_config(dict(raw), [], where)
    space = parameters(raw, config, where)
    require_trackers(config.sweep.trackers, f"{where}: sweep.trackers")
    if config.train.mode == "federated":
        raise ConfigError(f"{where}: train.mode: a sweep trains in one place; sweep with central first.")
    if config.sweep.gpu_share < 1 and not packed(config):
        raise ConfigError(f"{where}: sweep.gpu_share: workers of one training each take a whole GPU.")
    tables = _tables(config)
    home = config.dir / "sweep"
    folder = home / _identity(config, tables)
    with files.lock(folder / "lock"):
        ledger = Ledger(folder / "trials.jsonl")
        proposer = sampler(config.sweep, space, ledger.over)
        over = {record.number for record in ledger.over}
        todo = [number for number in range(proposer.trials) if number not in over]
        if todo:
            _run(config, _absolute(raw, config), folder.absolute(), ledger, proposer, todo)
        best = ledger.best()
        if best is None:
            why = next((record.message for record in ledger.records.values() if record.message), None)
            raise InputError(f"{folder / 'trials.jsonl'}: no trial finished; the first failure: {why}")
        write_outcome(home, raw, config.sweep, space, ledger, best)
    return home, best


def _tables(config: RunConfig) -> Tables:
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    tables.require_items(items)
    counts = tables.metadata.comparisons
    if tables.metadata.seen_users == 0:
        raise InputError(f"{config.tables_dir}: no seen users to train on; lower prepare.unseen_share.")
    if not counts.get(f"unseen/{config.sweep.setting}", 0):
        raise InputError(
            f"{config.tables_dir}: no unseen users with {config.sweep.setting} comparisons to judge by; "
            "change sweep.setting, or prepare with a share of them."
        )
    return tables


def _identity(config: RunConfig, tables: Tables) -> str:
    """Return a name for all that the figure of a trial depends on beside its values, and for the space."""
    options = {"space", "sampler", "seed", "setting", "shots", "rungs", "reduction"}
    determined = [
        config.sweep.model_dump(mode="json", include=options),
        config.method.model_dump(mode="json"),
        config.train.model_dump(mode="json", exclude={"trackers"}),
        config.evaluate.seeds,
        tables.metadata.fingerprint,
    ]
    return hashlib.sha256(json.dumps(determined).encode()).hexdigest()[:12]


def _absolute(raw: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return the run for workers whose working directory is another."""
    paths = {"dir": config.dir, "items": config.items_dir, "tables": config.tables_dir}
    return {**copy.deepcopy(dict(raw)), **{name: str(path.absolute()) for name, path in paths.items()}}


def _run(
    config: RunConfig,
    raw: Mapping[str, Any],
    folder: Path,
    ledger: Ledger,
    proposer: Sampler,
    todo: list[int],
) -> None:
    """Let Ray Tune run the trials `todo`."""
    # The ledger and TensorBoard are written here, and Ctrl-C ends a sweep as it ends everything else.
    for variable in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER"):
        os.environ[variable] = "1"
    # A trial that failed has no accuracy to report.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    in_process = packed(config)
    cpus = config.train.most_workers * config.train.cpus_per_worker
    needed = {"CPU": cpus} if in_process else {"CPU": 0.0, "memory": float(LAUNCHER_BYTES)}
    if in_process and config.train.use_gpu:
        needed["GPU"] = config.sweep.gpu_share
    room = max(math.ceil(cpus), os.cpu_count() or 1)
    # A launched training that is stopped early dies with its trial.
    with connected(room, dashboard=not in_process), tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(Trial, raw=raw, folder=str(folder)), needed),
            tune_config=tune.TuneConfig(
                search_alg=Proposals(todo, raw, proposer, ledger),
                scheduler=stopping(config.sweep, ledger.over),
                num_samples=len(todo),
                max_concurrent_trials=config.sweep.max_concurrent_trials or _slots(config),
                reuse_actors=in_process,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                callbacks=[Recorder(folder, proposer, ledger, config.sweep.trackers, config.dir)],
                failure_config=tune.FailureConfig(
                    max_failures=config.train.max_failures if in_process else 0
                ),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()


def _slots(config: RunConfig) -> int:
    """Return how many trials Ray has room for at once, at least one."""
    resources = ray.cluster_resources()
    workers = config.train.most_workers
    room = resources.get("CPU", 0.0) / (workers * config.train.cpus_per_worker)
    if config.train.use_gpu:
        room = min(room, resources.get("GPU", 0.0) / (workers * config.sweep.gpu_share))
    return max(1, int(room))
