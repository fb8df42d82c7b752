"""Traffic against a service, and what became of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from raypref.client import AsyncClient, Comparison
from tests.serve.world import DIM, some


@dataclass
class Ledger:
    """What writers were told: the truth that the store is held against."""

    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    """Event ids of each user."""
    version: dict[str, int] = field(default_factory=dict)
    """The highest acknowledged one of each user."""
    failed: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    @property
    def events(self) -> int:
        """How many events were acknowledged."""
        return sum(map(len, self.acknowledged.values()))


async def write(
    url: str,
    stop: threading.Event,
    ledger: Ledger,
    writers: int,
    users: int,
    pause_s: float,
    timeout_s: float,
) -> None:
    """Add comparisons of random users until stopped, each writer one call at a time."""

    async def writer(number: int) -> None:
        random = np.random.default_rng(number)
        while not stop.is_set():
            user = f"user-{random.integers(users)}"
            chosen, rejected = random.standard_normal((2, DIM)).astype(np.float32)
            comparison = Comparison(chosen, rejected)
            begun_s = time.monotonic()
            try:
                known = await client.learn(user, [comparison])
            except Exception as error:
                ledger.failed.append(str(error))
            else:
                ledger.acknowledged.setdefault(user, set()).add(comparison.event_id)
                ledger.version[user] = max(known.version, ledger.version.get(user, 0))
            ledger.slowest_s = max(ledger.slowest_s, time.monotonic() - begun_s)
            await asyncio.sleep(pause_s)

    async with AsyncClient(url, timeout_s=timeout_s) as client:
        await asyncio.gather(*(writer(number) for number in range(writers)))


@dataclass
class Answer:
    """One answer to a score request, or its absence."""

    at_s: float
    """When it was there, by the monotonic clock."""
    seconds: float
    status: int
    """0: there was none."""
    body: bytes
    headers: httpx.Headers = field(default_factory=httpx.Headers)

    def model(self) -> str:
        """Return which model answered."""
        return json.loads(self.body)["model"]


def score_body(seed: int, user: str | None = None, candidates: int = 8) -> bytes:
    """Return a score request in JSON."""
    items = [{"embedding": row.tolist()} for row in some(seed, candidates, DIM)]
    return json.dumps({"user": user, "candidates": items}).encode()


async def score(
    url: str, stop: Callable[[], bool], answers: list[Answer], clients: int, users: int, pause_s: float = 0.0
) -> None:
    """Ask for scores with plain HTTP clients that retry nothing."""
    bodies = [score_body(seed, f"user-{seed % users}") for seed in range(64)]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)

    async def asker(number: int) -> None:
        turn = number
        while not stop():
            begun_s = time.monotonic()
            try:
                response = await http.post("/v1/score", content=bodies[turn % len(bodies)])
                found = Answer(0.0, 0.0, response.status_code, response.content, response.headers)
            except httpx.HTTPError as error:
                found = Answer(0.0, 0.0, 0, repr(error).encode())
            found.at_s = time.monotonic()
            found.seconds = found.at_s - begun_s
            answers.append(found)
            turn += 1
            if pause_s:
                await asyncio.sleep(pause_s)

    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30, headers=headers) as http:
        await asyncio.gather(*(asker(number) for number in range(clients)))


@contextmanager
def behind(work: Callable[[threading.Event], Coroutine[Any, Any, None]]) -> Generator[None]:
    """Run a coroutine in a thread during a block; it ends when the event it is given is set."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work(stop))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def statuses(answers: list[Answer]) -> Counter[int]:
    """Return how many answers had which status."""
    return Counter(answer.status for answer in answers)
