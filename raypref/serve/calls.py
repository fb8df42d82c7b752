"""What the ingress asks a Scorer, and what it answers: arrays, already checked for form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from raypref.schema import Embedder
from raypref.serve.spans import Origin, Span
from raypref.wire.errors import WireError


class StoreRefused(WireError):
    """Refused because the store of users is down."""


@dataclass(frozen=True)
class Items:
    """Items as they were given: embeddings, or rows of the items table, mixed as need be."""

    emb_MD: np.ndarray
    """float16 or float32, those that came as embeddings, in order."""
    row_N: np.ndarray
    """Row of each item in the items table, int64; -1 takes the next of `emb_MD`."""
    embedder: Embedder | None = None
    """Which embedder made `emb_MD`, where it was the service's own."""

    def __len__(self) -> int:
        return len(self.row_N)

    @classmethod
    def of(cls, emb_ND: np.ndarray, embedder: Embedder | None = None) -> Items:
        """Return items that all came as embeddings."""
        return cls(emb_ND, np.full(len(emb_ND), -1), embedder)


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of one user."""

    chosen: Items
    rejected: Items
    event_ids: tuple[str, ...]
    time_P: tuple[float, ...]
    """Seconds since 1970."""
    weight_P: tuple[float, ...]


@dataclass(frozen=True)
class Who:
    """For whom; all empty: the population."""

    users: tuple[str, ...] = ()
    comparisons: Comparisons | None = None
    vector_Z: np.ndarray | None = None
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Score:
    """Score candidates for users."""

    tenant: str
    who: Who
    candidates: Items
    baseline: Items | None = None
    """One item; None: the first candidate."""
    model: str | None = None
    origin: Origin | None = None
    """Where in a trace its parts belong; None: it is not traced."""


def scores_of(calls: Iterable[Score]) -> int:
    """Return how many scores calls ask for."""
    return sum(len(call.candidates) * max(1, len(call.who.users)) for call in calls)


@dataclass(frozen=True)
class Scored:
    """Rows are users, or one row for a user who is not stored; all from one bundle."""

    model: str
    users: tuple[str, ...]
    version_U: np.ndarray
    shots_U: np.ndarray
    degraded: bool
    """The store did not answer: stored users were scored as the population."""
    mean_UN: np.ndarray
    std_UN: np.ndarray | None
    probability_UN: np.ndarray


@dataclass(frozen=True)
class Suggest:
    """Rank pairs by what the answer is expected to tell about one user."""

    tenant: str
    who: Who
    chosen: Items
    rejected: Items
    model: str | None = None


@dataclass(frozen=True)
class Suggested:
    """Pairs in the order of the request."""

    model: str
    version: int
    shots: int
    gain_N: np.ndarray
    """Nats."""
    probability_N: np.ndarray
    std_N: np.ndarray


@dataclass(frozen=True)
class Learn:
    """Add comparisons to a stored user."""

    tenant: str
    user: str
    comparisons: Comparisons
    origin: Origin | None = None


LEARNED_TOGETHER = 4096
"""Comparisons that are learned in one commit, more or less."""


def comparisons_of(calls: Iterable[Learn]) -> int:
    """Return how many comparisons calls bring."""
    return sum(len(call.comparisons.event_ids) for call in calls)


C = TypeVar("C", Score, Learn)


def arrived(calls: list[C]) -> list[C]:
    """Return calls just received: those that are traced begin to wait now."""
    return [call if call.origin is None else replace(call, origin=call.origin.now()) for call in calls]


def handed_on(calls: list[C], span: Span) -> list[C]:
    """Return calls whose further parts belong under `span`, begun for those of them that are traced."""
    origins = iter(span.origins())
    return [call if call.origin is None else replace(call, origin=next(origins)) for call in calls]


@dataclass(frozen=True)
class Known:
    """A user's posterior."""

    model: str
    version: int
    shots: int
    vector_Z: np.ndarray
    weights: list[float] | None
    std: list[float] | None
    nearest: list[tuple[int, float]]
    """Bases and their distance, or weight where bases are axes; nearest first."""
    distances: bool
    """Whether `nearest` holds distances."""


@dataclass(frozen=True)
class Learned:
    """A user after comparisons were added, durably."""

    known: Known
    applied: int
    duplicates: int
    erased: int


@dataclass(frozen=True)
class Stored:
    """A comparison as it is kept."""

    event_id: str
    time_s: float
    weight: float
    chosen: dict[str, Any]
    rejected: dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """All that is kept of a user."""

    known: Known
    comparisons: list[Stored]


@dataclass(frozen=True)
class Description:
    """The model that is served, and how its store is."""

    model: str
    method: str
    width: int
    embedder: Embedder
    items: int
    """Rows of the items table; 0 without one."""
    uncertain: bool
    seen_users: int
    loaded_s: float
    store_down: str | None
    """Why the store does not answer; None where it does."""
    refused: str | None
    """Why the bundle that was asked for last is not the one that is served; None where it is."""
