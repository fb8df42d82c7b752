"""Training state on disk: what a killed run needs to end in the same weights, bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from raypref import files
from raypref.checkpoint import load_tensors, read_tensors, save_tensors, verify, write_manifest
from raypref.errors import CorruptError
from raypref.train.loop import TrainState

COUNTERS = ("step", "looks", "best_nll", "best_accuracy", "best_step", "stopped")


def save_state(state: TrainState, directory: Path) -> None:
    """Write a training state into an existing, empty directory."""
    save_tensors(state.model.state_dict(), directory / "model.safetensors")
    moments = {
        f"{index}.{name}": value
        for index, entry in state.optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }
    save_tensors(moments, directory / "optimiser.safetensors")
    if state.best:
        save_tensors(state.best, directory / "best.safetensors")
    counters = {name: getattr(state, name) for name in COUNTERS}
    for name in ("best_nll", "best_accuracy"):
        counters[name] = counters[name] if math.isfinite(counters[name]) else None
    files.write_text(directory / "state.json", json.dumps(counters, indent=2) + "\n")
    write_manifest(directory)


def load_state(state: TrainState, directory: Path) -> None:
    """Fill a fresh state from a directory that `save_state` wrote.

    Raises:
        CorruptError: a file is missing or changed, or belongs to another model.
    """
    verify(directory)
    load_tensors(state.model, directory / "model.safetensors")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in read_tensors(directory / "optimiser.safetensors").items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    current = state.optimiser.state_dict()
    try:
        state.optimiser.load_state_dict({"state": moments, "param_groups": current["param_groups"]})
    except ValueError as error:
        raise CorruptError(f"{directory}: the optimiser state does not fit the model ({error}).") from error
    best = directory / "best.safetensors"
    state.best = read_tensors(best) if best.is_file() else {}
    counters = json.loads((directory / "state.json").read_text())
    for name in COUNTERS:
        setattr(state, name, counters[name])
    state.best_nll = math.inf if counters["best_nll"] is None else counters["best_nll"]
    state.best_accuracy = math.nan if counters["best_accuracy"] is None else counters["best_accuracy"]
