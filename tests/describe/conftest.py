from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.describe.world import World, grow, make_bundle

STEPS = {"lore": 60, "vrf": 120, "bt": 10, "dpl": 10, "vpl": 25}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("describe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYPREF_CACHE", str(folder / "cache"))
        yield grow(folder)


@pytest.fixture(scope="session")
def bundles(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: make_bundle(world, folder / name, name, steps) for name, steps in STEPS.items()}
