"""Training state on disk: what a killed run needs to end in the same weights, bit for bit.

What all workers share is written by the one that carries the first shard; the rows of users stand in a folder
for each shard, written by whichever worker carries it. So the number of workers may change in between.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from raypref import files
from raypref.checkpoint import read_tensors, save_tensors, verify, write_manifest
from raypref.errors import CorruptError
from raypref.train.loop import TrainState
from raypref.train.shards import own_rows, shared_parameters, shared_state, user_tables

COUNTERS = ("step", "looks", "best_nll", "best_accuracy", "best_step", "stopped")

WEIGHTS, MOMENTS, BEST = "model.safetensors", "optimiser.safetensors", "best.safetensors"


def shard_folder(directory: Path, shard: int) -> Path:
    """Return where the rows of a shard's users stand in a training state."""
    return directory / f"shard-{shard:05d}"


def save_state(state: TrainState, directory: Path) -> None:
    """Write this worker's part of a training state into an existing, empty directory."""
    for place, (number, model) in enumerate(zip(state.shards.numbers, state.models, strict=True)):
        if model.user_rows:
            folder = shard_folder(directory, number)
            folder.mkdir()
            best = state.best_rows[place] if state.best_rows else {}
            _save(folder, own_rows(model), moments(state, user_tables(model)), best)
    if state.shards.rank == 0:
        counters = {name: getattr(state, name) for name in COUNTERS}
        for name in ("best_nll", "best_accuracy"):
            counters[name] = counters[name] if math.isfinite(counters[name]) else None
        files.write_text(directory / "state.json", json.dumps(counters, indent=2) + "\n")
        known = moments(state, shared_parameters(state.model))
        _save(directory, shared_state(state.model), known, state.best)


def load_state(state: TrainState, directory: Path) -> None:
    """Fill a fresh state from a directory that the workers of a run wrote with `save_state`.

    Raises:
        CorruptError: a file is missing or changed, or belongs to another model.
    """
    verify(directory)
    for model in state.models:
        _fill(shared_state(model), directory / WEIGHTS)
    _load_moments(state, shared_parameters(state.model), directory)
    state.best, state.best_rows = _best(directory), []
    for number, model in zip(state.shards.numbers, state.models, strict=True):
        folder = shard_folder(directory, number)
        if model.user_rows:
            _verify_shard(folder)
            _fill(user_tables(model), folder / WEIGHTS)
            _load_moments(state, user_tables(model), folder)
        if state.best:
            state.best_rows.append(_best(folder) if model.user_rows else {})
    _load_counters(state, directory)


def load_weights(state: TrainState, directory: Path, rows: Iterable[Tensor]) -> None:
    """Fill a fresh state of one shard with the weights that all shards of a run ended in, the best it had.

    Args:
        state: changed in place; it is for reading off a result, not for more training.
        directory: as in `load_state`.
        rows: of each shard of the run, the rows of its users; asked for only where a method has any.

    Raises:
        CorruptError: a file is missing or changed, or belongs to another model.
    """
    verify(directory)
    model = state.model
    name = BEST if (directory / BEST).is_file() else WEIGHTS
    _fill(shared_state(model), directory / name)
    tables = user_tables(model)
    for number, row_U in enumerate(rows if tables else ()):
        folder = shard_folder(directory, number)
        _verify_shard(folder)
        own = {key: table.detach()[row_U] for key, table in tables.items()}
        _fill(own, folder / name)
        for key, table in tables.items():
            table.detach()[row_U] = own[key]
    _load_counters(state, directory)


def fill(tensors: Mapping[str, Tensor], found: Mapping[str, Tensor], source: object) -> None:
    """Copy what was found into tensors of the same names and shapes.

    Raises:
        CorruptError: the names or shapes are others; `source` says where they come from.
    """
    if {name: part.shape for name, part in found.items()} != {n: part.shape for n, part in tensors.items()}:
        raise CorruptError(f"{source}: does not fit the method, or the users, that it claims.")
    for name, part in tensors.items():
        part.detach().copy_(found[name])


def _fill(tensors: Mapping[str, Tensor], path: Path) -> None:
    fill(tensors, read_tensors(path), path)


def moments(state: TrainState, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return what the optimiser knows of parameters, by the parameter's name and its own."""
    return {
        f"{name}.{moment}": value
        for name, parameter in parameters.items()
        for moment, value in state.optimiser.state.get(parameter, {}).items()
    }


def _save(
    directory: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], best: Mapping[str, Tensor]
) -> None:
    save_tensors(weights, directory / WEIGHTS)
    save_tensors(moments, directory / MOMENTS)
    if best:
        save_tensors(best, directory / BEST)
    write_manifest(directory)


def set_moments(
    state: TrainState, parameters: Mapping[str, nn.Parameter], found: Mapping[str, Tensor], source: object
) -> None:
    """Let the optimiser know what `moments` returned.

    Args:
        state: changed in place.
        parameters: as given to `moments`.
        found: what it returned.
        source: where that was kept, for the error.

    Raises:
        CorruptError: it is of another model.
    """
    for key, value in found.items():
        name, _, moment = key.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() and value.shape != parameter.shape):
            raise CorruptError(f"{source}: the optimiser state does not fit the model ({key}).")
        # Counts of steps stay on the CPU, where the optimiser looks for them.
        state.optimiser.state[parameter][moment] = value.to(parameter.device) if value.dim() else value


def _load_moments(state: TrainState, parameters: Mapping[str, nn.Parameter], directory: Path) -> None:
    set_moments(state, parameters, read_tensors(directory / MOMENTS), directory)


def _best(directory: Path) -> dict[str, Tensor]:
    path = directory / BEST
    return read_tensors(path) if path.is_file() else {}


def _verify_shard(folder: Path) -> None:
    if not folder.is_dir():
        raise CorruptError(f"{folder}: missing; another number of shards wrote this checkpoint.")
    verify(folder)


def _load_counters(state: TrainState, directory: Path) -> None:
    counters = json.loads((directory / "state.json").read_text())
    for name in COUNTERS:
        setattr(state, name, counters[name])
    state.best_nll = math.inf if counters["best_nll"] is None else counters["best_nll"]
    state.best_accuracy = math.nan if counters["best_accuracy"] is None else counters["best_accuracy"]
