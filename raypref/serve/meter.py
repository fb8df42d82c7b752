"""Figures for Prometheus, through Ray; labels name routes, methods and statuses, never users or tenants."""

from __future__ import annotations

from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

LATENCIES_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]


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

    def scored(self, candidates: int, cold_users: int) -> None:
        """Count scores given, and users who got the population's."""
        if candidates:
            self._scored.inc(candidates)
        if cold_users:
            self._cold.inc(cold_users)

    def store_failed(self) -> None:
        """Count an answer that the store's failure refused or degraded."""
        self._store_failures.inc()
