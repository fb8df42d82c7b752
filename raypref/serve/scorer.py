"""The Scorer: a replica with a bundle and a store, that takes requests of many users together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any, TypeVar

import ray
import torch

from raypref.data.items import ItemTable
from raypref.errors import ConfigError, RayprefError
from raypref.hub import resolve
from raypref.serve import desk
from raypref.serve.batching import Batcher, in_thread
from raypref.serve.calls import (
    LEARNED_TOGETHER,
    C,
    Description,
    Exported,
    Known,
    Learn,
    Learned,
    Score,
    Scored,
    Suggest,
    Suggested,
    arrived,
    comparisons_of,
    scores_of,
)
from raypref.serve.config import ServeSettings
from raypref.serve.judge import Judge
from raypref.serve.meter import RewardMeter
from raypref.serve.spans import Origin, under
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key, Store, StoreDown
from raypref.serve.tracing import open_tracer
from raypref.serve.users import Users
from raypref.wire.errors import WireError

T = TypeVar("T")

log = logging.getLogger("ray.serve.raypref")


class Scorer:
    """Answers calls of the ingress; errors that a request causes come back as `WireError` values.

    Scoring and learning each have a thread of their own, so that a durable commit holds up no score, and
    neither holds up the replica's loop. While a thread works, requests gather: they are the next batch.
    """

    def __init__(self, config: ServeSettings, bundle: str) -> None:
        """Open the store and the items table; `reconfigure` brings the bundle.

        Args:
            config: all but the bundle.
            bundle: what a replica begins with where it cannot use the one that `reconfigure` names.

        Raises:
            ConfigError: the store is for one machine, and the cluster has more.
        """
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self._config = config
        self._bundle = bundle
        self._items = None if config.items is None else ItemTable.open(config.items)
        self._store = open_store(config.store, timeout_s=config.store_timeout_s)
        _require_one_node(self._store, config.store)
        self._users = Users(self._store, config.max_comparisons, config.half_life_days)
        self._tracer = open_tracer(config.tracing, "scorer")
        self._judge: Judge | None = None
        self._refused: str | None = None
        self._rewards = RewardMeter()
        score, learn = in_thread("score", self._score_together), in_thread("learn", self._learn_together)
        self._score = Batcher(score, config.batch, scores_of, config.max_scores)
        self._learn = Batcher(learn, config.batch, comparisons_of, LEARNED_TOGETHER)
        self._threads = ThreadPoolExecutor(2, "other")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Swap the bundle: requests under way keep the old one, later ones have the new one.

        A bundle that cannot be loaded, or could not read the users' comparisons, is refused with the old one
        serving on. A replica that has none yet begins with the application's: others were refused the same
        bundle, and there must be replicas that serve.
        """
        place: str = user_config["bundle"]
        try:
            self._judge, self._refused = await self._run(lambda: self._adopt(place)), None
        except RayprefError as error:
            if self._judge is None:
                if place == self._bundle:
                    raise
                self._judge = await self._run(lambda: self._adopt(self._bundle))
            self._refused = str(error)
            log.error("bundle refused, %s serves: %s", self._judge.id, error)
            return
        log.info("bundle %s serves", self._judge.id)

    def _adopt(self, place: str) -> Judge:
        """Return the bundle of a folder or of the hub, if it can take over."""
        judge = Judge.load(resolve(place), self._items)
        if self._judge is not None:
            self._judge.require_successor(judge)
        embedder = judge.info.embedder.model_dump_json()
        kept = self._store.setting("embedder", embedder)
        if kept != embedder:
            raise ConfigError(
                f"{judge.id}: the store's comparisons were embedded by {kept}, the bundle takes {embedder}; "
                "use a store of its own for it."
            )
        return judge

    async def score(self, calls: list[Score]) -> list[Scored | WireError] | WireError:
        """Score candidates for users; all calls of one list see the same bundle."""
        return await _told(self._score(self._arrived(calls)))

    def _score_together(self, sheaves: list[list[Score]]) -> list[list[Scored | WireError]]:
        judge, failing = self._judging(), self._config.on_store_failure
        calls = [call for sheaf in sheaves for call in sheaf]
        with self._together("score", calls):
            answers = desk.score(judge, self._users, calls, failing)
        self._rewards.given(answers)
        return _part(answers, sheaves)

    async def learn(self, calls: list[Learn]) -> list[Learned | WireError] | WireError:
        """Add comparisons to users: durable when it returns."""
        return await _told(self._learn(self._arrived(calls)))

    def _learn_together(self, sheaves: list[list[Learn]]) -> list[list[Learned | WireError]]:
        judge = self._judging()
        calls = [call for sheaf in sheaves for call in sheaf]
        with self._together("learn", calls):
            return _part(self._users.learn(judge, calls), sheaves)

    def _arrived(self, calls: list[C]) -> list[C]:
        return calls if self._tracer is None else arrived(calls)

    def _together(self, name: str, calls: list[C]) -> AbstractContextManager[object]:
        """Run a block as work for calls together: a part of the trace of each that is traced."""
        if self._tracer is None:
            return under(None)
        span = self._tracer.join(name, "server", [call.origin for call in calls])
        if span is not None:
            span.attributes["requests"] = len(calls)
            span.waited("batch")
        return under(span)

    async def traced(self, origin: Origin, method: str, *args: object) -> Any:
        """Answer as one of the methods below does, as a part of a traced request."""
        span = None if self._tracer is None else self._tracer.join(method, "server", [origin.now()])
        with under(span):
            return await getattr(self, method)(*args)

    async def suggest(self, call: Suggest) -> Suggested | WireError:
        """Return what asking about pairs would tell."""
        return await self._answer(lambda: desk.suggest(self._judging(), self._users, call))

    async def user(self, tenant: str, user: str) -> Known | WireError:
        """Return what is known of a user."""
        return await self._answer(lambda: self._users.known(self._judging(), Key(tenant, user)))

    async def export(self, tenant: str, user: str) -> Exported | WireError:
        """Return all that is kept of a user."""
        return await self._answer(lambda: self._users.export(self._judging(), Key(tenant, user)))

    async def erase(self, tenant: str, user: str) -> bool | WireError:
        """Erase a user."""
        return await self._answer(lambda: self._users.erase(Key(tenant, user)))

    async def forget(self, tenant: str, user: str, event_id: str) -> Known | WireError | None:
        """Remove one comparison; None: there is none."""
        return await self._answer(lambda: self._users.forget(self._judging(), Key(tenant, user), event_id))

    async def decay(
        self, tenant: str, user: str, factor: float, operation: str, at_s: float
    ) -> Known | WireError | None:
        """Make older comparisons count less; None: there are none."""
        return await self._answer(
            lambda: self._users.decay(self._judging(), Key(tenant, user), factor, operation, at_s)
        )

    async def describe(self) -> Description:
        """Return which model is served, and how the store is."""
        judge = self._judging()
        trouble = await self._run(self._users.trouble)
        return Description(
            judge.id,
            judge.info.method.type,
            judge.width,
            judge.info.embedder,
            0 if judge.items is None else len(judge.items),
            judge.uncertain,
            judge.info.users,
            judge.loaded_s,
            trouble,
            self._refused,
        )

    def _judging(self) -> Judge:
        if self._judge is None:
            raise WireError(503, "no bundle is loaded yet.", retry_after_s=1)
        return self._judge

    async def _answer(self, question: Callable[[], T]) -> T | WireError:
        return await _told(self._run(question))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, work)


async def _told(answer: Awaitable[T]) -> T | WireError:
    """Return an answer, or the refusal that came instead."""
    try:
        return await answer
    except StoreDown as error:
        return desk.store_refusal(error)
    except WireError as error:
        return error


def _part(answers: list[T], like: Sequence[Sequence[object]]) -> list[list[T]]:
    """Return answers in lists of the lengths that the calls came in."""
    rest = iter(answers)
    return [[next(rest) for _ in sheaf] for sheaf in like]


def _require_one_node(store: Store, url: str) -> None:
    """Refuse a store of one machine where replicas on several would each see their own users."""
    if store.nodes == "many" or not ray.is_initialized():
        return
    alive = sum(bool(node["Alive"]) for node in ray.nodes())
    if alive > 1:
        raise ConfigError(
            f"store {url.partition(':')[0]}: is for one machine, this cluster has {alive}; "
            "use postgresql://… or redis://…."
        )
