from __future__ import annotations

from pathlib import Path

import pytest

from tests.federated.world import plant


@pytest.fixture(scope="session")
def population(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("clients"))
