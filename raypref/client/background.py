"""An event loop in a thread: blocking callers get the connections and deadlines of async ones."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Resource = TypeVar("Resource")
Result = TypeVar("Result")


class Background(Generic[Resource]):
    """Something that lives in an event loop, with a thread of its own for the loop; any thread may use it.

    The thread starts with the first use. A process forked since gets another thread and resource.
    """

    def __init__(
        self, start: Callable[[], Resource], stop: Callable[[Resource], Coroutine[Any, Any, None]]
    ) -> None:
        """Prepare; `stop` runs on the loop before it ends, at the latest when Python exits."""
        self._start = start
        self._stop = stop
        self._guard = threading.Lock()
        self._running: _Running[Resource] | None = None
        self._closed = False

    def submit(self, work: Callable[[Resource], Coroutine[Any, Any, Result]]) -> Future[Result]:
        """Begin a piece of work on the loop; cancelling the future cancels it.

        Raises:
            RuntimeError: this is closed.
        """
        with self._guard:
            if self._closed:
                raise RuntimeError("This client is closed.")
            if self._running is None or self._running.process != os.getpid():
                self._running = _Running(self._start(), self._stop)
            return asyncio.run_coroutine_threadsafe(work(self._running.resource), self._running.loop)

    def run(self, work: Callable[[Resource], Coroutine[Any, Any, Result]]) -> Result:
        """Do a piece of work on the loop and return its result; what interrupts the wait cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what is still under way and end the thread."""
        with self._guard:
            self._closed = True
            if self._running is not None:
                self._running.end()


class _Running(Generic[Resource]):
    def __init__(self, resource: Resource, stop: Callable[[Resource], Coroutine[Any, Any, None]]) -> None:
        self.resource = resource
        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self.loop.run_forever, name="raypref-client", daemon=True)
        thread.start()
        self.end = weakref.finalize(self, _end, self.loop, thread, self.process, lambda: stop(resource))


def _end(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    process: int,
    stop: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    # A forked child has the objects but not the thread, and the connections are its parent's. The garbage
    # collector may come by on the loop's own thread, which cannot wait for itself.
    if process != os.getpid() or threading.current_thread() is thread:
        return
    asyncio.run_coroutine_threadsafe(_wind_up(stop), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _wind_up(stop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await stop()
