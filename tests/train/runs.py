"""Trainings of any shards in this process, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from raypref.checkpoint import build
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.train.loop import start
from raypref.train.session import Session, finish
from raypref.train.shards import Shards
from raypref.train.state import load_weights
from raypref.types import Dims


def session(config: RunConfig, shards: Shards) -> Session:
    """Return the fresh training of some shards."""
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    return Session(config, items, tables, torch.device("cpu"), shards)


def result(config: RunConfig, total: int, directory: Path) -> dict[str, Tensor]:
    """Return the bundle's weights of a training that stands in `directory`."""
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    blank = build(config.method, Dims(items.width, tables.metadata.seen_users))
    state = start(blank, config.method.recipe)
    load_weights(state, directory, rows(tables, total))
    return finish(config, items, tables, state).model.state_dict()


def rows(tables: Tables, total: int) -> list[Tensor]:
    """Return which rows of the table of seen users each of `total` shards has."""
    return [
        torch.from_numpy(tables.comparisons("seen", ["train"], tables.shard(shard, total)).row_U)
        for shard in range(total)
    ]
