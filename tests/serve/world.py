"""Bundles of every method, small and trained for a moment, and the service in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import torch
import uvicorn

from raypref.checkpoint import BUNDLE_USERS_SCHEMA, Bundle, BundleInfo, library_versions
from raypref.methods import METHODS
from raypref.methods.base import MethodConfig
from raypref.schema import Embedder
from raypref.serve.app import make_app
from raypref.serve.config import ServeConfig
from raypref.serve.scorer import Scorer
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes, Pairs
from raypref.wire.errors import WireError
from tests.serve.chaos.service import free_ports

DIM, USERS, STEPS = 24, 30, 12

METHOD_NAMES = tuple(method.model_fields["type"].default for method in METHODS)


def embedder_of(dim: int = DIM) -> Embedder:
    return Embedder(
        model="test", revision="1", pooling="mean", normalised=False, template="{prompt}\n\n{response}",
        max_length=64, dim=dim,
    )  # fmt: skip


def make_bundle(
    directory: Path, method: str | MethodConfig = "vrf", seed: int = 0, dim: int = DIM, steps: int = STEPS
) -> Path:
    """Train a method on random comparisons for a moment and save its bundle."""
    if isinstance(method, str):
        config = next(kind for kind in METHODS if kind.model_fields["type"].default == method)()
    else:
        config = method
    width = dim * (2 if config.needs_prompts else 1)
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = config.build(Dims(width, USERS))
    model.fit_scale(torch.randn(500, width, generator=random))

    def pairs(users: int, comparisons: int) -> Pairs:
        taste_B1D = torch.randn(users, 1, width, generator=random)
        first, second = torch.randn(2, users, comparisons, width, generator=random)
        prefers = ((first - second) * taste_B1D).sum(-1, keepdim=True) > 0
        return Pairs(
            torch.where(prefers, first, second),
            torch.where(prefers, second, first),
            torch.ones(users, comparisons),
        )

    seen = pairs(USERS, 8)
    nothing = Pairs(seen.chosen_BPD[:, :0], seen.rejected_BPD[:, :0], seen.mask_BP[:, :0])
    model.prime([Episodes(nothing, seen, torch.arange(USERS))])
    state = start(model, config.recipe.model_copy(update={"steps": steps}))
    context = pairs(USERS, min(6, config.recipe.context[1]))
    episodes = (Episodes(context, seen, torch.arange(USERS)) for _ in range(steps))
    for _ in train(state, episodes, config.recipe, seed=seed):
        pass
    model.eval()
    model.settle([seen])
    info = BundleInfo(
        method=config, dim=width, users=USERS, embedder=embedder_of(dim), data_fingerprint="0" * 64,
        steps=steps, metrics={}, versions=library_versions(),
    )  # fmt: skip
    users = pa.table({name: [] for name in BUNDLE_USERS_SCHEMA.names}, BUNDLE_USERS_SCHEMA)
    Bundle(model, info, users).save(directory)
    return directory


class LocalRemote:
    """The calls of a Scorer, in this process."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer

    async def call(self, method: str, *args: object) -> Any:
        answer = await getattr(self._scorer, method)(*args)
        if isinstance(answer, WireError):
            raise answer
        return answer


async def local_client(config: ServeConfig, embedder: Any = None) -> httpx.AsyncClient:
    """Return a client of the whole service without Ray: guard, routes, Scorer, store."""
    scorer = Scorer(config.settings, config.bundle)
    await scorer.reconfigure({"bundle": str(config.bundle)})
    app = make_app(config.settings, LocalRemote(scorer), embedder)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@contextmanager
def listening(config: ServeConfig, embedder: Any = None) -> Iterator[str]:
    """Serve the whole service without Ray on a port of this process; yields its address."""
    scorer = Scorer(config.settings, config.bundle)
    served = make_app(config.settings, LocalRemote(scorer), embedder)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await scorer.reconfigure({"bundle": config.bundle})
        await served(scope, receive, send)

    [port] = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline_s = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def some(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
