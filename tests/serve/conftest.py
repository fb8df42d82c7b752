from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raypref.methods.base import MethodConfig
from tests.serve.stores.conftest import running
from tests.serve.stores.servers import Postgres, Redis
from tests.serve.world import make_bundle

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running(Postgres) as server:
        assert isinstance(server, Postgres)
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    with running(Redis) as server:
        assert isinstance(server, Redis)
        yield server


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Return the bundle of a method and a seed, trained once in a run."""
    folder = tmp_path_factory.mktemp("bundles")
    made: dict[tuple[str, int], Path] = {}

    def bundle(method: str | MethodConfig = "vrf", seed: int = 0) -> Path:
        name = method if isinstance(method, str) else method.model_dump_json()
        if (name, seed) not in made:
            made[name, seed] = make_bundle(folder / f"bundle-{len(made)}", method, seed)
        return made[name, seed]

    return bundle
