"""Tasks through Ray Data actors: each worker opens what it needs once, and results come as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch

from raypref import errors
from raypref.cluster import connected

Task = TypeVar("Task")
Result = TypeVar("Result")


class _Worker(Generic[Task, Result]):
    """The actor. Errors of ours come back as rows: of an error that is raised Ray passes on only the text."""

    def __init__(self, tasks: Sequence[Task], open_work: Callable[[], Callable[[Task], Result]]) -> None:
        # One thread: workers fill the cores, and results must not depend on how many there are.
        torch.set_num_threads(1)
        self._tasks = tasks
        self._open = open_work
        self._work: Callable[[Task], Result] | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        (number,) = batch["number"].tolist()
        found = np.empty(1, object)
        try:
            # Here, not in `__init__`: an actor that cannot start is one that Ray starts again and again.
            self._work = self._work or self._open()
            found[0] = self._work(self._tasks[number])
        except errors.RayprefError as error:
            return {"error": [type(error).__name__], "text": [str(error)], "found": found}
        return {"error": [""], "text": [""], "found": found}


def in_actors(
    tasks: Sequence[Task],
    open_work: Callable[[], Callable[[Task], Result]],
    workers: int | None,
    in_order: bool = False,
) -> Iterator[Result]:
    """Do tasks in actors of Ray Data, and yield what each gives.

    A worker that is killed is started again, and its task done anew.

    Args:
        tasks: what to do, each for itself.
        open_work: called once in each worker, before its first task; what it returns does a task.
        workers: actors of one CPU each; None takes the cluster's CPUs.
        in_order: whether results come in the order of the tasks.

    Raises:
        RayprefError: what a worker raised.
    """
    if not tasks:
        return
    import ray
    import ray.data

    with connected():
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = in_order
        cpus = int(ray.cluster_resources().get("CPU", 1))
        with ray.data.DataContext.current(context):
            dataset = ray.data.from_items(
                [{"number": number} for number in range(len(tasks))], override_num_blocks=len(tasks)
            ).map_batches(
                cast(Any, _Worker),
                fn_constructor_args=(tasks, open_work),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(len(tasks), workers or cpus)),
                num_cpus=1,
            )
            batches = cast(Iterable[dict[str, Any]], dataset.iter_batches(batch_size=None))
        for batch in batches:
            for error, text, found in zip(batch["error"], batch["text"], batch["found"], strict=True):
                if error:
                    raise getattr(errors, error, errors.RayprefError)(text)
                yield found
