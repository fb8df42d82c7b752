from __future__ import annotations

import pytest

from raypref.methods import BTConfig
from tests.methods.small_population import SmallPopulation, accuracy, fit, grow


@pytest.fixture(scope="session")
def small_population() -> SmallPopulation:
    return grow()


@pytest.fixture(scope="session")
def bt_accuracy(small_population: SmallPopulation) -> dict[int, float]:
    return {0: accuracy(fit(BTConfig(), small_population), small_population, 0)}
