from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch

from raypref.errors import CorruptError
from raypref.federated.rows import FIRST, RowsTable


def kept(value: float) -> dict[str, torch.Tensor]:
    return {"row": torch.full((1, 3), value), "moments.row.step": torch.tensor(value)}


def test_what_a_client_kept_comes_back_to_any_process(tmp_path: Path) -> None:
    table = RowsTable(tmp_path)
    table.write(3, 17, FIRST, 0, kept(1.0))
    table.close()
    found = RowsTable(tmp_path).read(3, 17, 0)
    assert torch.equal(found["row"], kept(1.0)["row"])
    assert torch.equal(found["moments.row.step"], torch.tensor(1.0))


def test_the_round_before_stands_until_the_next_one_counts(tmp_path: Path) -> None:
    """A round that never closes is as if it had not been: the client goes on from the one that counted."""
    table = RowsTable(tmp_path)
    table.write(0, 1, FIRST, 2, kept(2.0))
    table.write(0, 1, 2, 5, kept(5.0))  # round 5 was not closed
    assert float(table.read(0, 1, 2)["row"][0, 0]) == 2.0
    table.write(0, 1, 2, 5, kept(5.5))  # and again
    assert float(table.read(0, 1, 5)["row"][0, 0]) == 5.5
    table.write(0, 1, 5, 9, kept(9.0))
    with pytest.raises(CorruptError, match="nothing of client 1 after round 2"):
        table.read(0, 1, 2)


def test_clients_do_not_touch_one_another(tmp_path: Path) -> None:
    table = RowsTable(tmp_path)
    for client in (1, 2):
        table.write(0, client, FIRST, 0, kept(float(client)))
    table.write(0, 1, 0, 1, kept(7.0))
    assert float(table.read(0, 2, 0)["row"][0, 0]) == 2.0


def test_damage_is_found(tmp_path: Path) -> None:
    table = RowsTable(tmp_path)
    table.write(0, 1, FIRST, 0, kept(1.0))
    table.close()
    with sqlite3.connect(tmp_path / "bucket-00000.sqlite") as file:
        file.execute("UPDATE clients SET kept = ?", (b"rubbish",))
    file.close()
    with pytest.raises(CorruptError, match="client 1 does not parse"):
        RowsTable(tmp_path).read(0, 1, 0)
