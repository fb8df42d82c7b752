from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raypref.config_file import parse_config
from raypref.data.planting import write_planted

Raw = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items and tables of a small planted population."""
    folder = tmp_path_factory.mktemp("planted")
    sizes = {"dim": 16, "train_prompts": 60, "test_prompts": 30, "rewards": 3}
    sizes |= {"seen_users": 60, "unseen_users": 40, "comparisons": 20, "shots": 8, "test_comparisons": 20}
    config = parse_config({"planted": sizes}, [], "test")
    write_planted(config.planted, folder / "items", folder / "tables", buckets=4)
    return folder


@pytest.fixture
def described(planted: Path, tmp_path: Path) -> Raw:
    """Returns a run on the planted population, as one would write it, that sweeps over `space`."""

    def of(space: dict[str, Any], method: dict[str, Any] | None = None, **sweep: Any) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "dir": str(tmp_path / "run"),
                "items": str(planted / "items"),
                "tables": str(planted / "tables"),
                "method": method or {"type": "lore", "recipe": {"steps": 18}},
                "train": {"validate_every": 6},
                "evaluate": {"shots": [0, 4], "bootstrap": 10},
                "sweep": {"space": space, "shots": 4, **sweep},
            }
        )

    return of
