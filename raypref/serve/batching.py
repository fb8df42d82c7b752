"""Requests taken together: what comes while others are under way goes with the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

C = TypeVar("C")
A = TypeVar("A")


def in_thread(name: str, work: Callable[[list[C]], list[A]]) -> Callable[[list[C]], Awaitable[list[A]]]:
    """Return `work`, which blocks, as what a `Batcher` takes: it runs in one thread of its own."""
    thread = ThreadPoolExecutor(1, name)

    async def run(batch: list[C]) -> list[A]:
        return await asyncio.get_running_loop().run_in_executor(thread, work, batch)

    return run


class Batcher(Generic[C, A]):
    """Calls of one kind, answered in batches.

    A call that finds a lane free goes at once and alone: nobody waits for company. Serve's own batching needs
    a replica around it and waits by the clock; this one runs wherever the service does.
    """

    def __init__(
        self,
        work: Callable[[list[C]], Awaitable[list[A]]],
        most: int,
        cost: Callable[[C], int],
        budget: int,
        lanes: int = 1,
    ) -> None:
        """Answer batches with `work`.

        Args:
            work: returns an answer for each call, in order; what it raises, all calls of the batch raise.
            most: calls in a batch.
            cost: of a call; a batch costs at most `budget`, unless one call alone costs more.
            budget: see `cost`.
            lanes: batches under way at once.
        """
        self._work = work
        self._most = most
        self._cost = cost
        self._budget = budget
        self._free = lanes
        self._waiting: deque[tuple[C, asyncio.Future[A]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, call: C) -> A:
        """Return the answer to one call."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            task = asyncio.create_task(self._run(batch))
            # The loop itself keeps no task alive.
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _next(self) -> list[tuple[C, asyncio.Future[A]]]:
        """Return the next batch; who has left is not in it."""
        batch: list[tuple[C, asyncio.Future[A]]] = []
        spent = 0
        while self._waiting and len(batch) < self._most:
            call, future = self._waiting[0]
            if not future.done():
                spent += self._cost(call)
                if batch and spent > self._budget:
                    break
                batch.append((call, future))
            self._waiting.popleft()
        return batch

    async def _run(self, batch: list[tuple[C, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._work([call for call, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        finally:
            self._free += 1
            self._start()
