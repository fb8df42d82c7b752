"""Training steps from comparisons: a pure function of seed, rank and step, to resume exactly."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Generator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from raypref.data.tables import Comparisons
from raypref.errors import InputError
from raypref.methods.base import Recipe
from raypref.types import Episodes, Pairs

PREFETCH_STEPS = 2

BLOCK_BYTES = 1 << 18
"""Of float16 embeddings that are looked up and widened at a time, so that they stay in the core's cache."""

Gather = Callable[[np.ndarray], np.ndarray]
"""Item ids (N,) to embeddings, float16 (N, D)."""

Padded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""chosen_BP and rejected_BP, item ids (int64), and mask_BP, weights (float32); all 0 where padded."""


def pad(
    comparisons: Comparisons,
    users: np.ndarray,
    limit: int | None = None,
    order: np.random.Generator | None = None,
) -> Padded:
    """Return the comparisons of some users side by side.

    Args:
        comparisons: where they are.
        users: positions in `comparisons.user_U`.
        limit: most comparisons of a user; None takes all. Smaller limits take a prefix of larger ones.
        order: draws which comparisons come first; None takes them as they stand.
    """
    counts_B = comparisons.counts_U[users]
    width = int(counts_B.max(initial=0))
    place_BP = _shuffled(counts_B, width, order) if order else _in_order(len(users), width)
    width = width if limit is None else min(width, limit)
    index_BP = comparisons.offsets[users][:, None] + place_BP[:, :width]
    return _take(comparisons, index_BP, np.arange(width) < counts_B[:, None])


class Buffers:
    """float32 arrays of one shape at a time, lent again once nobody holds them any more.

    The system fills every page of a new array with zeros when it is first written, which takes longer than
    what is written there.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._free: list[np.ndarray] = []

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array, its content arbitrary, that is the caller's until it and its tensors are gone."""
        whole = self._free.pop() if self._free else np.empty(shape, np.float32)
        if whole.shape != shape:
            whole = np.empty(shape, np.float32)
        lent = whole.view()
        weakref.finalize(lent, self._free.append, whole).atexit = False
        return lent


class EpisodeSampler:
    """Draws the episodes of one worker from its own users' comparisons, without any state.

    Users come in the order of a new permutation each epoch; a step may span two. Of each user a context of
    random size and the targets are drawn, disjoint, and there is at least one target. Widths are the same in
    every step.
    """

    def __init__(
        self,
        comparisons: Comparisons,
        gather: Gather,
        recipe: Recipe,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Sample from `comparisons`, which are those of this worker alone (`Tables.shard`).

        Args:
            comparisons: training comparisons of this worker's users, each with at least one.
            gather: looks up embeddings, such as `ItemTable.gather`.
            recipe: sizes of the step, the context and the targets.
            seed: names the sequence of steps.
            rank: of this worker; other ranks draw other numbers.
            world_size: workers that share the users of a step.

        Raises:
            InputError: there is nothing to sample.
        """
        if not len(comparisons) or not comparisons.counts_U.all():
            raise InputError(
                f"worker {rank} of {world_size} has no training comparisons, or users without any; "
                "use fewer workers or more users."
            )
        self.comparisons = comparisons
        self._gather = gather
        self._seed = (seed, rank)
        users = len(comparisons.user_U)
        largest = int(comparisons.counts_U.max())
        self._users_per_step = min(-(-recipe.users_per_step // world_size), users)
        self._fewest, most = recipe.context
        self._context_width = min(most, largest - 1)
        self._target_width = min(recipe.targets, largest)
        self._largest = largest
        # Steps follow one another, so the permutations of two epochs serve nearly all of them.
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)
        self._buffers = Buffers()

    def episodes(self, step: int) -> Episodes:
        """Return the episodes of a step, on the CPU, embeddings in float32."""
        users = self._users(step)
        context, target = self._draw(users, self._rng(1, step))
        flat = np.concatenate([ids.reshape(-1) for part in (context, target) for ids in part[:2]])
        emb_ND = self._embeddings(flat)
        sizes = [part[2].size for part in (context, context, target, target)]
        blocks = [
            block_ND.view(len(users), -1 if size else 0, emb_ND.shape[1])
            for size, block_ND in zip(sizes, emb_ND.split(sizes), strict=True)
        ]
        return Episodes(
            Pairs(blocks[0], blocks[1], torch.from_numpy(context[2])),
            Pairs(blocks[2], blocks[3], torch.from_numpy(target[2])),
            self._rows(users),
        )

    def stream(self, start_step: int = 0) -> Generator[Episodes]:
        """Yield the episodes of `start_step` and every later step, drawn ahead in a background thread."""
        ready: queue.Queue[Episodes | BaseException] = queue.Queue(PREFETCH_STEPS)
        stopped = threading.Event()

        def put(value: Episodes | BaseException) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(value, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            step = start_step
            try:
                while not stopped.is_set():
                    put(self.episodes(step))
                    step += 1
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="episodes", daemon=True)
        thread.start()
        try:
            while True:
                value = ready.get()
                if isinstance(value, BaseException):
                    raise value
                yield value
        finally:
            stopped.set()
            thread.join()

    def _embeddings(self, ids_N: np.ndarray) -> Tensor:
        """Return the embeddings of items in float32."""
        dim = self._gather(ids_N[:1]).shape[1]
        emb_ND = torch.from_numpy(self._buffers.lend((len(ids_N), dim)))
        rows = max(1, BLOCK_BYTES // (2 * dim))
        for block_ND, block_N in zip(
            emb_ND.split(rows), np.split(ids_N, range(rows, len(ids_N), rows)), strict=True
        ):
            block_ND.copy_(torch.from_numpy(self._gather(block_N)))
        return emb_ND

    def _users(self, step: int) -> np.ndarray:
        users = len(self.comparisons.user_U)
        first = step * self._users_per_step
        place = np.arange(first, first + self._users_per_step)
        epoch = first // users
        # A step is never larger than an epoch, so it touches at most two.
        two = np.concatenate([self._permutation(epoch), self._permutation(epoch + 1)])
        return two[place - epoch * users]

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        return self._rng(0, epoch).permutation(len(self.comparisons.user_U))

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((*self._seed, purpose, number))))

    def _draw(self, users: np.ndarray, rng: np.random.Generator) -> tuple[Padded, Padded]:
        counts_B = self.comparisons.counts_U[users]
        most_B = np.minimum(self._context_width, counts_B - 1)
        size_B = rng.integers(np.minimum(self._fewest, most_B), most_B, endpoint=True)
        place_BP = _shuffled(counts_B, self._largest, rng)
        first_B = self.comparisons.offsets[users]
        context_P, target_P = np.arange(self._context_width), np.arange(self._target_width)
        target_BP = size_B[:, None] + target_P
        valid_BP = target_BP < counts_B[:, None]
        shifted_BP = np.take_along_axis(place_BP, np.where(valid_BP, target_BP, 0), axis=1)
        return (
            _take(
                self.comparisons,
                first_B[:, None] + place_BP[:, : self._context_width],
                context_P < size_B[:, None],
            ),
            _take(self.comparisons, first_B[:, None] + shifted_BP, valid_BP),
        )

    def _rows(self, users: np.ndarray) -> Tensor:
        return torch.from_numpy(self.comparisons.row_U[users])


def _in_order(users: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.arange(width), (users, width))


def _shuffled(counts_B: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return, for each user, a random order of 0 to count - 1; what comes after is meaningless."""
    key_BP = rng.random((len(counts_B), width))
    key_BP[np.arange(width) >= counts_B[:, None]] = 2.0
    return np.argsort(key_BP, axis=1)


def _take(comparisons: Comparisons, index_BP: np.ndarray, valid_BP: np.ndarray) -> Padded:
    index_BP = np.where(valid_BP, index_BP, 0)
    if not len(comparisons):
        return index_BP, index_BP.copy(), np.zeros(index_BP.shape, np.float32)
    return (
        np.where(valid_BP, comparisons.chosen_M[index_BP], 0),
        np.where(valid_BP, comparisons.rejected_M[index_BP], 0),
        np.where(valid_BP, comparisons.weight_M[index_BP], np.float32(0)),
    )
