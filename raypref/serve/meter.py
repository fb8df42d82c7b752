"""Figures for Prometheus, through Ray; labels name routes, methods and statuses, never users or tenants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ray.serve.metrics import Counter, Gauge, Histogram

from raypref.serve.calls import Scored
from raypref.wire.errors import WireError

LATENCIES_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]

MODELS = 32
"""Bundles that one process tells apart, in the order in which they came; later ones are `other`."""


class Meter:
    """Counts what the service does; a microsecond or three each, and harmless where no Ray runs."""

    def __init__(self) -> None:
        """Register the figures with Ray, under the names that Prometheus shows after `ray_`."""
        # Ray's annotation knows tuples of one key only.
        labels: Any = ("route", "method", "status")
        self._requests = Counter("raypref_requests", "Requests answered.", labels)
        self._latency_s = Histogram(
            "raypref_request_seconds",
            "From the request's head to the end of its answer.",
            LATENCIES_S,
            ("route",),
        )
        self._in_flight = Gauge("raypref_in_flight", "Requests in the process now.")
        self._applied = Counter("raypref_comparisons_applied", "Comparisons made durable that were new.")
        self._scored = Counter("raypref_candidates_scored", "Candidates scored, once for each user.")
        self._users = Counter("raypref_users_scored", "Stored users scored, once for each request.")
        self._cold = Counter("raypref_cold_users_scored", "Users scored of whom nothing was known.")
        self._store_failures = Counter(
            "raypref_store_failures", "Answers refused or degraded because the store of users is down."
        )

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            route: its template, never its path.
            method: one of HTTP's.
            status: what was answered.
            seconds: how long it took.
        """
        self._requests.inc(1, {"route": route, "method": method, "status": str(status)})
        self._latency_s.observe(seconds, {"route": route})

    def in_flight(self, requests: int) -> None:
        """Tell how many requests are in the process."""
        self._in_flight.set(requests)

    def applied(self, comparisons: int) -> None:
        """Count comparisons that were made durable."""
        if comparisons:
            self._applied.inc(comparisons)

    def scored(self, candidates: int, users: int, cold_users: int) -> None:
        """Count scores given, the stored users they are for, and who of them got the population's."""
        if candidates:
            self._scored.inc(candidates)
        if users:
            self._users.inc(users)
        if cold_users:
            self._cold.inc(cold_users)

    def store_failed(self) -> None:
        """Count an answer that the store's failure refused or degraded."""
        self._store_failures.inc()


class RewardMeter:
    """Sums of the rewards that each bundle gives, by which a drift shows.

    A counter cannot fall, and a reward may be negative: positive and negative ones are summed apart, and the
    mean is the difference of both sums by `raypref_rewards`.
    """

    def __init__(self) -> None:
        """Register the figures with Ray."""
        model: Any = ("model",)
        signed: Any = ("model", "sign")
        self._rewards = Counter("raypref_rewards", "Rewards given.", model)
        self._sum = Counter("raypref_reward_sum", "Sizes of the rewards given, by their sign.", signed)
        self._squares = Counter("raypref_reward_squares", "Squares of the rewards given.", model)
        self._uncertain = Counter(
            "raypref_uncertain_rewards", "Rewards given with a standard deviation.", model
        )
        self._uncertainty = Counter(
            "raypref_uncertainty_sum", "Standard deviations of the rewards given.", model
        )
        self._models: set[str] = set()

    def given(self, answers: Iterable[Scored | WireError]) -> None:
        """Sum the rewards of a batch: once for all of it, because each sum costs a microsecond or three."""
        of_model: dict[str, list[Scored]] = {}
        for answer in answers:
            if isinstance(answer, Scored):
                of_model.setdefault(answer.model, []).append(answer)
        for model, scored in of_model.items():
            tags = {"model": self._label(model)}
            # float32 would lose the small ones among a million.
            mean_N = np.concatenate([answer.mean_UN for answer in scored], None, dtype=np.float64)
            _add(self._rewards, mean_N.size, tags)
            total, sizes = float(mean_N.sum()), float(np.abs(mean_N).sum())
            _add(self._sum, (sizes + total) / 2, {**tags, "sign": "positive"})
            _add(self._sum, (sizes - total) / 2, {**tags, "sign": "negative"})
            _add(self._squares, float(np.square(mean_N).sum()), tags)
            stds = [answer.std_UN for answer in scored if answer.std_UN is not None]
            if stds:
                std_N = np.concatenate(stds, None)
                _add(self._uncertain, std_N.size, tags)
                _add(self._uncertainty, float(std_N.sum(dtype=np.float64)), tags)

    def _label(self, model: str) -> str:
        if model in self._models or len(self._models) < MODELS:
            self._models.add(model)
            return model
        return "other"


def _add(counter: Counter, amount: float, tags: dict[str, str]) -> None:
    """Add what Ray takes: it refuses to count nothing."""
    if amount > 0:
        counter.inc(amount, tags)
