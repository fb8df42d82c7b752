"""Where users stand: the vectors that a bundle infers from their logs, and keeps beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import NamedTuple

import numpy as np

from raypref.errors import MismatchError
from raypref.serve import raw, slots
from raypref.serve.calls import Comparisons
from raypref.serve.judge import Judge
from raypref.serve.line import Line
from raypref.serve.spans import within
from raypref.serve.stores.base import Event, Key, State, Store, StoreDown
from raypref.wire.errors import WireError

TICKS = 32
"""Steps in a half-life: a cached vector is at most this part of it old."""

SECONDS_PER_DAY = 86_400.0


class Standing(NamedTuple):
    """A user as of one version of the log."""

    version: int
    shots: int
    vector_Z: np.ndarray


@dataclass(frozen=True)
class Crowd:
    """Users, a row each: a thousand of them cost little more than their numbers."""

    version_U: np.ndarray
    shots_U: np.ndarray
    vector_UZ: np.ndarray
    """float32"""
    wrong: Mapping[int, WireError] = field(default_factory=dict[int, WireError])
    """Why a row says nothing, where its user's comparisons cannot be used."""

    @classmethod
    def alike(cls, standing: Standing, count: int) -> Crowd:
        """Return `count` users who all stand alike."""
        version, shots, vector_Z = standing
        vector_UZ = np.broadcast_to(vector_Z, (count, len(vector_Z)))
        return cls(np.full(count, version), np.full(count, shots), vector_UZ)

    def part(self, rows: slice) -> Crowd:
        """Return some of the users; raises what is wrong with the first wrong one."""
        if self.wrong:
            for row in range(*rows.indices(len(self.shots_U))):
                if row in self.wrong:
                    raise self.wrong[row]
        return Crowd(self.version_U[rows], self.shots_U[rows], self.vector_UZ[rows])

    def one(self, row: int) -> Standing | WireError:
        """Return one user, or what is wrong with them."""
        if row in self.wrong:
            return self.wrong[row]
        return Standing(int(self.version_U[row]), int(self.shots_U[row]), self.vector_UZ[row])


class Standings:
    """Of the users of all tenants, behind one store; methods block, and may be called from any thread."""

    def __init__(
        self, store: Store, half_life_days: float | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Take an open store.

        Args:
            store: where the log is.
            half_life_days: age at which a comparison counts half; None: they never age.
            clock: seconds since 1970.
        """
        self._line = Line(store)
        self._half_life_s = half_life_days and half_life_days * SECONDS_PER_DAY
        self._clock = clock

    def standing(self, judge: Judge, keys: Sequence[Key]) -> Crowd:
        """Return users as the bundle sees them, inferring and keeping what the store has no vector of.

        A user whose comparisons this bundle cannot encode is wrong, and no other.

        Raises:
            StoreDown: the store did not answer.
        """
        basis, now_s = self._basis(judge)
        crowd, stale = _cached(judge, self._line.ask(lambda store: store.read(keys), users=len(keys)), basis)
        return self._inferred(judge, crowd, keys, stale, basis, now_s) if stale else crowd

    def stored(self, judge: Judge, key: Key) -> Standing:
        """Return one user of `standing`; raises what is wrong with them."""
        standing = self.standing(judge, [key]).one(0)
        if isinstance(standing, WireError):
            raise standing
        return standing

    def transient(self, judge: Judge, comparisons: Comparisons) -> Standing:
        """Return a user who is not stored, adapted to the comparisons that came with a request."""
        chosen_PD = raw.embeddings(judge, comparisons.chosen)
        rejected_PD = raw.embeddings(judge, comparisons.rejected)
        order = np.argsort(np.array(comparisons.event_ids), kind="stable")
        weight_P = np.array(comparisons.weight_P, np.float32)
        with within("inference", users=1):
            evidence_PE = slots.encode(judge, chosen_PD, rejected_PD)
            vector_Z = slots.infer(judge, [(evidence_PE[order], weight_P[order])])[0]
        return Standing(0, len(weight_P), vector_Z)

    def _inferred(
        self, judge: Judge, crowd: Crowd, keys: Sequence[Key], stale: Sequence[int], basis: str, now_s: float
    ) -> Crowd:
        """Return the crowd with its stale rows made from the users' logs."""
        rows: dict[Key, list[int]] = {}
        for row in stale:
            rows.setdefault(keys[row], []).append(row)
        found = self._line.ask(lambda store: store.events(list(rows)), users=len(rows))
        logs = dict(zip(rows, found, strict=True))
        wrong: dict[Key, WireError] = {}
        for key, (_, events) in logs.items():
            if not _readable(judge, events):
                try:
                    logs[key] = self._reencode(judge, key)
                except MismatchError as error:
                    wrong[key] = WireError(503, str(error))
        fresh = [key for key in rows if key not in wrong]
        # By id: whatever order the comparisons came in, equal logs give equal bits.
        with within("inference", users=len(fresh)):
            vectors_UZ = slots.infer(judge, [self._history(judge, logs[key][1], now_s) for key in fresh])
        keep: list[tuple[Key, int, str, bytes]] = []
        for key, vector_Z in zip(fresh, vectors_UZ, strict=True):
            version, events = logs[key]
            if np.isfinite(vector_Z).all():
                crowd.version_U[rows[key]], crowd.shots_U[rows[key]] = version, len(events)
                crowd.vector_UZ[rows[key]] = vector_Z
                keep.append((key, version, basis, vector_Z.astype("<f4").tobytes()))
            else:
                wrong[key] = WireError(422, "the user's comparisons give no finite vector; delete some.")
        # A store that can be read but not written to: the vectors are as good, and are made again.
        with suppress(StoreDown), self._line.span("write", len(keep)):
            self._line.store.remember(keep)
        return replace(crowd, wrong={row: error for key, error in wrong.items() for row in rows[key]})

    def _reencode(self, judge: Judge, key: Key) -> tuple[int, tuple[Event, ...]]:
        """Return version and events of a user, their evidence made by this bundle from what was given.

        Raises:
            MismatchError: what was given is not what the bundle takes.
        """
        ((version, events),) = self._line.ask(lambda store: store.events([key], raw=True))
        chosen_PD = raw.unpack([event.chosen for event in events], judge.items, judge.width)
        rejected_PD = raw.unpack([event.rejected for event in events], judge.items, judge.width)
        parts = [part.astype("<f4").tobytes() for part in slots.encode(judge, chosen_PD, rejected_PD)]
        renewed = [(event.event_id, part) for event, part in zip(events, parts, strict=True)]
        with suppress(StoreDown), self._line.span("write", 1):
            self._line.store.reencode(key, judge.fingerprint, renewed)
        return version, tuple(
            replace(event, encoder=judge.fingerprint, evidence=part)
            for event, part in zip(events, parts, strict=True)
        )

    def _history(self, judge: Judge, events: Sequence[Event], now_s: float) -> tuple[np.ndarray, np.ndarray]:
        weight_P = np.array([event.weight for event in events])
        if self._half_life_s:
            age_P = now_s - np.array([event.time_s for event in events])
            weight_P = weight_P * 0.5 ** (np.maximum(age_P, 0.0) / self._half_life_s)
        evidence_PE = _evidence(events).reshape(len(events), judge.evidence_width)
        return evidence_PE, weight_P.astype(np.float32)

    def _basis(self, judge: Judge) -> tuple[str, float]:
        """Return what a vector inferred now is made with, and the time that ages are measured from."""
        if not self._half_life_s:
            return judge.fingerprint, 0.0
        tick = int(self._clock() * TICKS / self._half_life_s)
        return f"{judge.fingerprint}@{self._half_life_s:g}:{tick}", tick * self._half_life_s / TICKS


def _cached(judge: Judge, states: Sequence[State], basis: str) -> tuple[Crowd, list[int]]:
    """Return users as the store's vectors have them, and the rows whose vector is not to be had.

    Of another bundle, or damaged, a vector is as good as none.
    """
    version_U = np.array([state.version for state in states], np.int64)
    shots_U = np.array([state.shots for state in states], np.int64)
    size = 4 * len(judge.prior_Z)
    fits = [bool(state.shots) and state.basis == basis and len(state.vector) == size for state in states]
    joined = b"".join(compress((state.vector for state in states), fits))
    fits_U = np.array(fits, bool)
    vector_UZ = np.empty((len(states), len(judge.prior_Z)), np.float32)
    vector_UZ[fits_U] = np.frombuffer(joined, "<f4").reshape(sum(fits), len(judge.prior_Z))
    vector_UZ[shots_U == 0] = judge.prior_Z
    fits_U[fits_U] = np.isfinite(vector_UZ[fits_U]).all(1)
    stale_U = (shots_U > 0) & ~fits_U
    return Crowd(version_U, shots_U, vector_UZ), np.flatnonzero(stale_U).tolist()


def _readable(judge: Judge, events: Sequence[Event]) -> bool:
    """Return whether all evidence is this bundle's, and undamaged."""
    size = 4 * judge.evidence_width
    if any(event.encoder != judge.fingerprint or len(event.evidence) != size for event in events):
        return False
    return bool(np.isfinite(_evidence(events)).all())


def _evidence(events: Sequence[Event]) -> np.ndarray:
    return np.frombuffer(b"".join(event.evidence for event in events), "<f4")
