"""A service with more to do than it can, for a long time, or one thing that is large."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import psutil
import pytest

from raypref.client import AsyncClient, Comparison
from raypref.wire.tensors import MEDIA_TYPE
from tests.serve.chaos.hammer import Blows, hammer
from tests.serve.chaos.load import behind
from tests.serve.chaos.service import RealService, rss_bytes
from tests.serve.world import DIM, make_bundle, some

LOG = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.load]

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    folder = tmp_path_factory.mktemp("load")
    service = RealService(folder, make_bundle(folder / "bundle"))
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    """What is measured is logged; a line for every request would bury it."""
    logging.getLogger("httpx").setLevel(logging.WARNING)


def replicas(service: RealService) -> list[psutil.Process]:
    return service.replicas("Scorer") + service.replicas("Ingress")


class Pulse:
    """Asks /healthz all the time."""

    def __init__(self, url: str) -> None:
        self.slowest_s = 0.0
        self.count = 0
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def _beat(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.is_set():
                begun_s = time.monotonic()
                assert client.get("/healthz").status_code == 200
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun_s)
                self.count += 1
                time.sleep(0.01)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def million_scores(url: str) -> None:
    from safetensors.numpy import save

    candidates = some(0, 1000, DIM)
    headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
    body = save(
        {"candidates": candidates},
        metadata={"request": json.dumps({"users": [f"user-{number}" for number in range(1000)]})},
    )
    response = httpx.post(f"{url}/v1/score", content=body, headers=headers, timeout=60)
    assert response.status_code == 200, response.text


def sixty_megabytes(url: str) -> None:
    from safetensors.numpy import save

    body = save({"candidates": some(0, 60 * MEGABYTE // (4 * DIM), DIM)}, metadata={"request": "{}"})
    assert len(body) > 60 * 10**6
    response = httpx.post(f"{url}/v1/score", content=body, headers={"content-type": MEDIA_TYPE}, timeout=60)
    # More candidates than one request may have, which is known only when all of it has come.
    assert response.status_code == 422, response.text


@pytest.mark.parametrize("work", [million_scores, sixty_megabytes])
def test_one_large_request_holds_up_no_other(service: RealService, work: Callable[[str], None]) -> None:
    with Pulse(service.url) as idle:
        time.sleep(2)
    with Pulse(service.url) as pulse:
        time.sleep(0.2)
        for _ in range(3):
            work(service.url)
        time.sleep(0.2)
    LOG.info("healthz: %.0f ms at most idle, %.0f ms meanwhile", idle.slowest_s * 1e3, pulse.slowest_s * 1e3)
    assert pulse.slowest_s < 0.25


@pytest.mark.timeout(200)
def test_ten_times_too_many_clients(service: RealService) -> None:
    asyncio.run(hammer(service.url, 64, 5))
    calm = asyncio.run(hammer(service.url, 8, 3))
    capacity = asyncio.run(hammer(service.url, 64, 6))
    LOG.info("8 clients: %s", calm)
    LOG.info("64 clients: %s", capacity)
    before = {process.pid: rss_bytes(process) for process in replicas(service)}
    overload = asyncio.run(hammer(service.url, 640, 12))
    ended_s = time.monotonic()
    LOG.info("640 clients: %s", overload)
    assert overload.served_per_s >= 0.9 * capacity.served_per_s
    check_refusals(overload)
    while True:
        again = asyncio.run(hammer(service.url, 8, 0.5))
        if again.seconds and max(again.seconds) <= 2 * max(calm.seconds):
            break
        assert time.monotonic() - ended_s < 5, f"not back to normal: {again}"
    LOG.info("normal again after %.1f s", time.monotonic() - ended_s)
    after = {process.pid: rss_bytes(process) for process in replicas(service)}
    LOG.info("MB: %s, then %s", *([size // MEGABYTE for size in sizes.values()] for sizes in (before, after)))
    assert after.keys() == before.keys()
    assert all(after[pid] <= 1.1 * before[pid] for pid in before)


@pytest.mark.timeout(100)
def test_a_flood_is_answered_in_form_and_leaves_nothing_behind(service: RealService) -> None:
    running = {process.pid for process in replicas(service)}
    flood = asyncio.run(hammer(service.url, 2560, 8))
    LOG.info("2560 clients: %s", flood)
    assert flood.statuses.total() > 1000
    check_refusals(flood)
    first = [rss_bytes(process) for process in replicas(service)]
    check_refusals(asyncio.run(hammer(service.url, 2560, 8)))
    second = [rss_bytes(process) for process in replicas(service)]
    # Memory for so many connections stays with the process; the next flood needs no more of it.
    LOG.info("MB: %s, then %s", *([size // MEGABYTE for size in sizes] for sizes in (first, second)))
    assert all(later <= 1.1 * earlier for earlier, later in zip(first, second, strict=True))
    service.await_answer("/readyz", 200, within_s=5)
    assert {process.pid for process in replicas(service)} == running


def check_refusals(blows: Blows) -> None:
    assert set(blows.statuses) <= {200, 429, 503}
    assert blows.unsound == []
    assert blows.broken == 0


async def mixed(url: str, stop: threading.Event, seed: int, counts: list[int]) -> None:
    """Write, score, read and erase many users until stopped."""
    random = np.random.default_rng(seed)
    async with AsyncClient(url, timeout_s=60) as client:

        async def one() -> None:
            while not stop.is_set():
                user = f"soak-{random.integers(20_000)}"
                kind = random.integers(10)
                if kind < 3:
                    chosen, rejected = random.standard_normal((2, DIM)).astype(np.float32)
                    await client.learn(user, [Comparison(chosen, rejected)])
                elif kind < 8:
                    scores = await client.score(
                        random.standard_normal((8, DIM)).astype(np.float32), users=[user, "soak-0"]
                    )
                    assert np.isfinite(scores.mean).all()
                elif kind == 8:
                    await client.export(user)
                else:
                    await client.erase(user)
                counts[0] += 1

        await asyncio.gather(*(one() for _ in range(16)))


@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_time(service: RealService) -> None:
    lasts_s = float(os.environ.get("RAYPREF_SOAK_S", "180"))
    warm_s = lasts_s / 3
    counts = [0]
    processes = replicas(service)
    samples: list[list[float]] = []
    with behind(lambda stop: mixed(service.url, stop, 0, counts)):
        begun_s = time.monotonic()
        while (age_s := time.monotonic() - begun_s) < lasts_s:
            if age_s > warm_s:
                samples.append([age_s, *(rss_bytes(process) / MEGABYTE for process in processes)])
            time.sleep(0.5)
    table = np.array(samples)
    slopes = np.polyfit(table[:, 0] / 60, table[:, 1:], 1)[0]
    LOG.info("%d requests in %.0f s; MB/min of replicas: %s", counts[0], lasts_s, np.round(slopes, 2))
    assert counts[0] > 10 * lasts_s
    assert slopes.max() < 1.0
