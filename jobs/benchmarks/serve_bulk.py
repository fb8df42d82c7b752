"""Where the time of one large request goes, in one process: body in, guard to store and back, answer out."""

from __future__ import annotations

import asyncio
import base64
import functools
import inspect
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from recording import best_s
from torch.utils._python_dispatch import TorchDispatchMode

from raypref.checkpoint import BUNDLE_USERS_SCHEMA, Bundle, BundleInfo, library_versions
from raypref.methods import AnyMethod
from raypref.methods.lore import LoReConfig
from raypref.methods.vrf import VRFConfig
from raypref.schema import Embedder
from raypref.serve import desk, routes
from raypref.serve.app import make_app
from raypref.serve.calls import Comparisons, Items, Learn
from raypref.serve.config import ServeConfig
from raypref.serve.exchange import ASGIApp
from raypref.serve.judge import Judge, Rewards
from raypref.serve.scorer import Scorer
from raypref.serve.service import Service
from raypref.serve.stores.sqlite import SQLiteStore
from raypref.serve.users import Users
from raypref.types import Dims
from raypref.wire.errors import WireError
from raypref.wire.tensors import MEDIA_TYPE, pack_request

BASES = 10
METHODS: tuple[AnyMethod, ...] = (VRFConfig(bases=BASES), LoReConfig(bases=BASES))
CANDIDATES = 64
SHOTS = 4
TOGETHER = 100
FORMS = ("floats", "base64", "safetensors")

PRODUCTS = frozenset(f"aten::{name}" for name in ("matmul", "linear", "mm", "bmm", "addmm", "baddbmm", "mv"))

STAGES: tuple[tuple[object, str, str], ...] = (
    (routes, "_read", "read the body"),
    (Service, "score", "ingress"),
    (desk, "score", "Scorer"),
    (Users, "standing", "users"),
    (SQLiteStore, "read", "store"),
    (Judge, "features", "item pass"),
    (Judge, "rewards", "users x items"),
    (Rewards, "finite", "check"),
    (routes, "_scores", "answer"),
    (routes, "_json", "answer"),
    (routes, "_bulk", "answer"),
)
"""Functions, and the stage that their own time belongs to; what is left is the guard and the routing."""

REST = "guard and routing"


def write_bundle(directory: Path, method: AnyMethod, width: int, users: int = 64) -> Path:
    """Save an untrained bundle: what its numbers are takes no time."""
    torch.manual_seed(0)
    model = method.build(Dims(width, users))
    model.fit_scale(torch.randn(256, width))
    embedder = Embedder(
        model="benchmark", revision="1", pooling="mean", normalised=False, template="{prompt}{response}",
        max_length=64, dim=width,
    )  # fmt: skip
    info = BundleInfo(
        method=method, dim=width, users=users, embedder=embedder, data_fingerprint="0" * 64, steps=0,
        metrics={}, versions=library_versions(),
    )  # fmt: skip
    table = pa.table({name: [] for name in BUNDLE_USERS_SCHEMA.names}, BUNDLE_USERS_SCHEMA)
    Bundle(model.eval(), info, table).save(directory)
    return directory


class _Here:
    """A Scorer without Ray."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    async def call(self, method: str, *args: object) -> Any:
        answer = await getattr(self._scorer, method)(*args)
        if isinstance(answer, WireError):
            raise answer
        return answer


class _Products(TorchDispatchMode):
    """Adds up the seconds of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begun_s = time.process_time()
        found = func(*args, **(kwargs or {}))
        if func._schema.name in PRODUCTS:
            self.seconds += time.process_time() - begun_s
        return found


class Clock:
    """Own time of functions; one request at a time, so that what runs nests, threads and all."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = [0.0]

    def _leave(self, stage: str, begun_s: float) -> None:
        spent_s = time.process_time() - begun_s
        inner_s = self._inner.pop()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + spent_s - inner_s
        self._inner[-1] += spent_s

    def wrap(self, work: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Return `work`, timed."""
        if inspect.iscoroutinefunction(work):

            @functools.wraps(work)
            async def timed_async(*args: Any, **kwargs: Any) -> Any:
                self._inner.append(0.0)
                begun_s = time.process_time()
                try:
                    return await work(*args, **kwargs)
                finally:
                    self._leave(stage, begun_s)

            return timed_async

        @functools.wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begun_s = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                self._leave(stage, begun_s)

        return timed


async def _ask(app: ASGIApp, body: bytes, media: str, accept: str) -> tuple[float, bytes]:
    """Return the seconds that an answer takes, and its body."""
    parts: list[bytes] = []
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        parts.append(message.get("body", b""))

    headers = {"content-type": media, "accept": accept, "content-length": str(len(body))}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"",
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    begun_s = time.process_time()
    await app(scope, receive, send)
    seconds = time.process_time() - begun_s
    answer = b"".join(parts)
    if statuses != [200]:
        raise RuntimeError(f"answered {statuses}: {answer[:300]!r}")
    return seconds, answer


def request_of(form: str, names: list[str], emb_ND: np.ndarray) -> tuple[bytes, str, str]:
    """Return body, media type and Accept of the request in one of `FORMS`."""
    if form == "safetensors":
        return pack_request({"users": names}, {"candidates": emb_ND}), MEDIA_TYPE, MEDIA_TYPE
    encoded = {"base64": base64.b64encode(emb_ND.tobytes()).decode(), "shape": list(emb_ND.shape)}
    request: dict[str, Any] = {"users": names, "candidates": {"embeddings": encoded}}
    if form == "base64":
        request["encoding"] = "base64"
    return json.dumps(request).encode(), "application/json", "application/json"


async def fill(bundle: Path, store: str, users: int) -> tuple[ServeConfig, Scorer, list[str]]:
    """Store users of a bundle who made some comparisons each, and return who serves them and their names."""
    config = ServeConfig(bundle=str(bundle), store=store, open=True)
    scorer = Scorer(config.settings, config.bundle)
    await scorer.reconfigure({"bundle": config.bundle})
    width = Judge.load(bundle, None).width
    random = np.random.default_rng(0)
    names = [f"user-{number}" for number in range(users)]
    ids, times, weights = tuple(map(str, range(SHOTS))), (0.0,) * SHOTS, (1.0,) * SHOTS
    for first in range(0, users, TOGETHER):
        calls: list[Learn] = []
        for name in names[first : first + TOGETHER]:
            chosen, rejected = random.standard_normal((2, SHOTS, width), np.float32)
            given = Comparisons(Items.of(chosen), Items.of(rejected), ids, times, weights)
            calls.append(Learn("default", name, given))
        await scorer.learn(calls)
    return config, scorer, names


async def _measure(
    method: AnyMethod, width: int, users: int, repeats: int, folder: Path
) -> list[dict[str, Any]]:
    bundle = write_bundle(folder / "bundle", method, width)
    config, scorer, names = await fill(bundle, f"sqlite:///{folder / 'users.db'}", users)
    random = np.random.default_rng(1)
    emb_ND = random.standard_normal((CANDIDATES, width), np.float32)
    found: list[dict[str, Any]] = []
    for form in FORMS:
        body, media, accept = request_of(form, names, emb_ND)
        app = make_app(config.settings, _Here(scorer), None)
        _, answer = await _ask(app, body, media, accept)
        stages_ms = await _stages_ms(config, scorer, repeats, body, media, accept)
        found.append(
            {
                "method": method.model_dump()["type"], "width": width, "form": form, "bytes_in": len(body),
                "bytes_out": len(answer), "total_ms": sum(stages_ms.values()),
                "products_ms": await _products_ms(app, repeats, body, media, accept),
                "stages_ms": stages_ms,
            }
        )  # fmt: skip
        one = found[-1]
        one["inside_ms"] = one["stages_ms"]["item pass"] + one["stages_ms"]["users x items"]
        one["outside_ms"] = one["total_ms"] - one["inside_ms"]
        one["outside_share"] = one["outside_ms"] / one["total_ms"]
        one["operations"] = 2 * CANDIDATES * BASES * (width + 4 * users)
    return found


async def _products_ms(app: ASGIApp, repeats: int, body: bytes, media: str, accept: str) -> float:
    """Return the median milliseconds of matrix products in a request."""
    plain, seconds = desk.score, list[float]()

    def counted(*args: Any) -> Any:
        with _Products() as products:
            found = plain(*args)
        seconds.append(products.seconds)
        return found

    desk.score = counted
    try:
        for _ in range(repeats + 2):
            await _ask(app, body, media, accept)
    finally:
        desk.score = plain
    return 1e3 * float(np.median(seconds[2:]))


async def _stages_ms(
    config: ServeConfig, scorer: Scorer, repeats: int, body: bytes, media: str, accept: str
) -> dict[str, float]:
    """Return the median milliseconds of each stage; what the clocks cost is in them."""
    plain = [(owner, name, getattr(owner, name)) for owner, name, _ in STAGES if hasattr(owner, name)]
    runs: list[dict[str, float]] = []
    clock = Clock()
    try:
        for owner, name, stage in STAGES:
            if hasattr(owner, name):
                setattr(owner, name, clock.wrap(getattr(owner, name), stage))
        app = clock.wrap(make_app(config.settings, _Here(scorer), None).__call__, REST)
        for _ in range(repeats + 2):
            clock.seconds = {}
            await _ask(app, body, media, accept)
            runs.append(clock.seconds)
    finally:
        for owner, name, work in plain:
            setattr(owner, name, work)
    stages = list(dict.fromkeys([*(stage for *_, stage in STAGES), REST]))
    return {stage: 1e3 * float(np.median([run.get(stage, 0.0) for run in runs[2:]])) for stage in stages}


def measure(widths: tuple[int, ...], users: int, repeats: int) -> list[dict[str, Any]]:
    """Return the figures of one request for many users: methods x widths x forms of body and answer."""
    logging.getLogger("ray.serve.raypref").setLevel(logging.WARNING)
    found: list[dict[str, Any]] = []
    for method in METHODS:
        for width in widths:
            with tempfile.TemporaryDirectory() as folder:
                found += asyncio.run(_measure(method, width, users, repeats, Path(folder)))
    return found


def limits() -> dict[str, float]:
    """Return what one thread of this machine does at best: operations and bytes a second."""
    torch.set_num_threads(1)
    square, row = torch.ones(1024, 1024), np.ones(1 << 26, np.uint8)
    return {
        "operations_per_s": 2 * 1024**3 / best_s(lambda: square @ square),
        "bytes_per_s": 2 * row.size / best_s(row.copy),
    }


if __name__ == "__main__":
    print(json.dumps(measure((384, 4096), 1000, 15), indent=1))
