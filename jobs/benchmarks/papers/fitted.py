"""Trained models themselves, where a claim needs more than scores; fitted once, kept as bundles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from populations import Population
from record import Trial
from trials import configured

import raypref
from papers.claim import Bench
from papers.published import Method
from raypref import files
from raypref.checkpoint import MANIFEST, Bundle
from raypref.config import EvaluateConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.methods.base import RewardModel
from raypref.train.session import fit


@dataclass(frozen=True)
class Fitted:
    """A model and the tables it was trained on."""

    model: RewardModel
    items: ItemTable
    tables: Tables
    evaluate: EvaluateConfig


def fitted(
    bench: Bench, population: str, method: Method, seed: int = 0, planted: Mapping[str, Any] | None = None
) -> Fitted:
    """Return a method fitted to a population, as a trial would fit it."""
    made = Population(population, seed, bench.size, planted or {}, bench.work, bench.data)
    made.embed()
    prepared = made.prepare()
    trial = Trial(population, seed, str(method["type"]), method, bench.size, planted or {})
    config = configured(trial, prepared.items, prepared.tables)
    items, tables = ItemTable.open(prepared.items), Tables.open(prepared.tables)
    determined = [made.identity, seed, config.method.model_dump(mode="json"), _sources()]
    name = hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()
    folder = bench.work / "bundles" / f"{population}-{method['type']}-{name[:16]}"
    if not (folder / MANIFEST).is_file():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            fit(config, items, tables).save(folder)
        finally:
            torch.set_num_threads(threads)
    return Fitted(Bundle.load(folder).model, items, tables, config.evaluate)


def _sources() -> dict[str, str]:
    """Return the hash of every file that can change what training ends in."""
    home = Path(raypref.__file__).parent
    parts = (home / part for part in ("methods", "data", "train"))
    return {path.name: files.sha256(path) for part in parts for path in sorted(part.glob("*.py"))}
