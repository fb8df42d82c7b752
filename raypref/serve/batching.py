"""Requests taken together: what comes while a batch is under way is the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

C = TypeVar("C")
A = TypeVar("A")


class Batcher(Generic[C, A]):
    """Calls of one kind, answered in batches by one thread.

    A call that finds the thread idle goes at once and alone; nobody waits for company. Serve's own batching
    needs a replica around it and waits by the clock; this one runs wherever the service does.
    """

    def __init__(
        self, name: str, work: Callable[[list[C]], list[A]], most: int, cost: Callable[[C], int], budget: int
    ) -> None:
        """Answer batches with `work`, which blocks.

        Args:
            name: of the thread.
            work: returns an answer for each call, in order; what it raises, all calls of the batch raise.
            most: calls in a batch.
            cost: of a call; a batch costs at most `budget`, unless one call alone costs more.
            budget: see `cost`.
        """
        self._work = work
        self._most = most
        self._cost = cost
        self._budget = budget
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: deque[tuple[C, asyncio.Future[A]]] = deque()
        self._busy = False

    async def __call__(self, call: C) -> A:
        """Return the answer to one call."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if not self._busy:
            self._next()
        return await future

    def _next(self) -> None:
        """Start the next batch; who has left is not in it."""
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
        self._busy = bool(batch)
        if batch:
            done = asyncio.get_running_loop().run_in_executor(
                self._thread, self._work, [call for call, _ in batch]
            )
            done.add_done_callback(lambda result: self._deliver(batch, result))

    def _deliver(self, batch: list[tuple[C, asyncio.Future[A]]], result: asyncio.Future[list[A]]) -> None:
        error = result.exception()
        for place, (_, future) in enumerate(batch):
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result.result()[place])
        self._next()
