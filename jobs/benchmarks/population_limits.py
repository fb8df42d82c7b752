"""What adapting and scoring a user must take at least: bytes and operations, at this machine's rates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from recording import best_s
from torch.utils.flop_counter import FlopCounterMode

from raypref.checkpoint import Bundle
from raypref.data.items import ItemTable

ROWS = 512
USERS = 64


@torch.no_grad()
def limits(run: Path) -> dict[str, Any]:
    """Return bytes and operations a user of the run below `run`, and the microseconds that they take at best.

    The rates are of one core, times the cores: of a square matrix product, and of gathering rows of the items
    table at random. Files are counted as the seconds of copying them in memory.
    """
    torch.set_num_threads(1)
    model, items = Bundle.load(run / "bundle").model, ItemTable.open(run / "items")
    tables = run / "tables"
    users = pq.read_metadata(tables / "users.parquet").num_rows
    candidates = pq.read_metadata(run / "candidates.parquet").num_rows
    comparisons = sum(pq.read_metadata(path).num_rows for path in (tables / "comparisons").iterdir())
    # One comparison of each user is held out.
    shots = comparisons // users - 1
    emb_ND = torch.zeros(ROWS, items.width, dtype=torch.float16)
    with FlopCounterMode(display=False) as encoding:
        evidence_NE = model.evidence(emb_ND, emb_ND)
    with FlopCounterMode(display=False) as joining:
        user_BZ = model.infer(evidence_NE[:shots].expand(USERS, -1, -1), torch.ones(USERS, shots))
        item_NF = model.item(emb_ND[:candidates])
        model.reward(item_NF.expand(USERS, -1, -1), user_BZ)
    operations = shots * encoding.get_total_flops() / ROWS + joining.get_total_flops() / USERS
    row_bytes = 2 * items.width
    files = {
        "read": _size(tables / "comparisons") + _size(tables / "users.parquet"),
        "written": _size(run / "plain"),
    }
    moved = {"gathered": 2 * shots * row_bytes, **{name: size / users for name, size in files.items()}}
    square = torch.ones(1024, 1024)
    rows_N = np.random.default_rng(0).integers(0, len(items), 1 << 15)
    flat = np.ones(1 << 26, np.uint8)
    rates = {
        "operations_per_s": 2 * 1024**3 / best_s(lambda: square @ square),
        "gathered_bytes_per_s": len(rows_N) * row_bytes / best_s(lambda: items.gather(rows_N)),
        "copied_bytes_per_s": len(flat) / best_s(flat.copy),
    }
    seconds = (
        operations / rates["operations_per_s"]
        + moved["gathered"] / rates["gathered_bytes_per_s"]
        + (moved["read"] + moved["written"]) / rates["copied_bytes_per_s"]
    )
    return {
        "operations_per_user": operations,
        "bytes_per_user": moved,
        "one_core": rates,
        "us_per_user": 1e6 * seconds / (os.cpu_count() or 1),
    }


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*")) if path.is_dir() else path.stat().st_size
