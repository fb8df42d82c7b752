from __future__ import annotations

from pathlib import Path

import pytest

from raypref.data.items import ItemTable
from tests.population.world import grow, save_bundle


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("population")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYPREF_CACHE", str(folder / "cache"))
        grow(folder)
        save_bundle(folder / "bundle", ItemTable.open(folder / "items"))
    return folder


@pytest.fixture(autouse=True)
def cache(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(planted / "cache"))
