"""Users: their log in the store, and the vectors that a bundle infers from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from raypref.errors import MismatchError
from raypref.serve import raw
from raypref.serve.calls import Comparisons, Exported, Items, Known, Learn, Learned, Stored
from raypref.serve.judge import Judge
from raypref.serve.stores.base import Event, Key, State, Store, StoreDown, Write
from raypref.wire.errors import WireError

T = TypeVar("T")

PAUSE_S = 1.0
"""How long a store that failed is left alone: requests in between fail at once instead of waiting in line."""

TICKS = 32
"""Steps in a half-life: a cached vector is at most this part of it old."""

NEAREST = 3
"""Bases that an answer names."""

SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Standing:
    """A user as of one version of the log."""

    version: int
    shots: int
    vector_Z: np.ndarray


class Users:
    """The users of all tenants, behind one store; methods block, and may be called from any thread."""

    def __init__(
        self,
        store: Store,
        max_comparisons: int,
        half_life_days: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take an open store.

        Args:
            store: where the log is.
            max_comparisons: most comparisons that one user may have.
            half_life_days: age at which a comparison counts half; None: they never age.
            clock: seconds since 1970.
        """
        self._store = store
        self._limit = max_comparisons
        self._half_life_s = half_life_days and half_life_days * SECONDS_PER_DAY
        self._clock = clock
        self._down_until_s = 0.0

    def learn(self, judge: Judge, calls: Sequence[Learn]) -> list[Learned | WireError]:
        """Add comparisons in one durable commit, and return what is known of each user then.

        Raises:
            StoreDown: nothing was acknowledged; what was committed all the same, a retry finds.
        """
        answers: list[Learned | WireError | None] = [None] * len(calls)
        given: list[tuple[int, list[bytes], list[bytes], np.ndarray, np.ndarray]] = []
        for number, call in enumerate(calls):
            try:
                chosen, rejected = call.comparisons.chosen, call.comparisons.rejected
                chosen_PD, rejected_PD = embeddings(judge, chosen), embeddings(judge, rejected)
                pair = raw.pack(chosen, judge.items), raw.pack(rejected, judge.items)
                given.append((number, *pair, chosen_PD, rejected_PD))
            except WireError as error:
                answers[number] = error
        if given:
            encoded_NE = judge.encode(
                np.concatenate([chosen_PD for *_, chosen_PD, _ in given]),
                np.concatenate([rejected_PD for *_, rejected_PD in given]),
            )
            writes: list[Write] = []
            first = 0
            for number, chosen, rejected, *_ in given:
                evidence_PE = encoded_NE[first : first + len(chosen)]
                first += len(chosen)
                writes.append(_write(judge, calls[number], chosen, rejected, evidence_PE))
            written = self._ask(lambda: self._store.append(writes, self._limit))
            standing = self.standing(judge, [write.key for write in writes])
            for (number, *_), result, stands in zip(given, written, standing, strict=True):
                if result.outcome == "conflict":
                    answers[number] = WireError(
                        409,
                        f"event_id {', '.join(result.conflicts)}: already names another comparison; "
                        "draw a new id. Nothing of this request was kept.",
                        "comparisons",
                    )
                elif result.outcome == "full":
                    answers[number] = WireError(
                        422,
                        f"a user may have {self._limit} comparisons, and has {result.state.shots}; "
                        "delete some. Nothing of this request was kept.",
                        "comparisons",
                    )
                elif isinstance(stands, WireError):
                    answers[number] = stands
                else:
                    known = _known(judge, stands)
                    answers[number] = Learned(known, result.applied, result.duplicates, result.erased)
        return [answer for answer in answers if answer is not None]

    def standing(self, judge: Judge, keys: Sequence[Key]) -> list[Standing | WireError]:
        """Return users as the bundle sees them, inferring and keeping what the store has no vector of.

        A user whose comparisons this bundle cannot encode is an error, and no other's.

        Raises:
            StoreDown: the store did not answer.
        """
        basis, now_s = self._basis(judge)
        unique = list(dict.fromkeys(keys))
        states = self._ask(lambda: self._store.read(unique))
        known: dict[Key, Standing | WireError] = {
            key: _standing(judge, state)
            for key, state in zip(unique, states, strict=True)
            if not state.shots or state.basis == basis
        }
        stale = [key for key in unique if key not in known]
        if stale:
            known |= self._infer(judge, stale, basis, now_s)
        return [known[key] for key in keys]

    def _infer(
        self, judge: Judge, keys: list[Key], basis: str, now_s: float
    ) -> dict[Key, Standing | WireError]:
        logs = dict(zip(keys, self._ask(lambda: self._store.events(keys)), strict=True))
        known: dict[Key, Standing | WireError] = {}
        for key, (_, events) in logs.items():
            if any(event.encoder != judge.fingerprint for event in events):
                try:
                    logs[key] = self._reencode(judge, key)
                except MismatchError as error:
                    known[key] = WireError(503, str(error))
        # By id: whatever order the comparisons came in, equal logs give equal bits.
        fresh = [key for key in keys if key not in known]
        if not fresh:
            return known
        vectors_UZ = judge.infer([self._history(judge, logs[key][1], now_s) for key in fresh])
        keep: list[tuple[Key, int, str, bytes]] = []
        for key, vector_Z in zip(fresh, vectors_UZ, strict=True):
            version, events = logs[key]
            if np.isfinite(vector_Z).all():
                known[key] = Standing(version, len(events), vector_Z)
                keep.append((key, version, basis, vector_Z.astype("<f4").tobytes()))
            else:
                known[key] = WireError(422, "the user's comparisons give no finite vector; delete some.")
        self._ask(lambda: self._store.remember(keep))
        return known

    def _reencode(self, judge: Judge, key: Key) -> tuple[int, tuple[Event, ...]]:
        """Return version and events of a user, their evidence made by this bundle from what was given.

        Raises:
            MismatchError: what was given is not what the bundle takes.
        """
        ((version, events),) = self._ask(lambda: self._store.events([key], raw=True))
        chosen_PD = raw.unpack([event.chosen for event in events], judge.items, judge.width)
        rejected_PD = raw.unpack([event.rejected for event in events], judge.items, judge.width)
        parts = [part.astype("<f4").tobytes() for part in judge.encode(chosen_PD, rejected_PD)]
        renewed = [(event.event_id, part) for event, part in zip(events, parts, strict=True)]
        self._ask(lambda: self._store.reencode(key, judge.fingerprint, renewed))
        return version, tuple(
            replace(event, encoder=judge.fingerprint, evidence=part)
            for event, part in zip(events, parts, strict=True)
        )

    def _history(self, judge: Judge, events: Sequence[Event], now_s: float) -> tuple[np.ndarray, np.ndarray]:
        joined = b"".join(event.evidence for event in events)
        evidence_PE = np.frombuffer(joined, "<f4").reshape(len(events), judge.evidence_width)
        weight_P = np.array([event.weight for event in events])
        if self._half_life_s:
            age_P = now_s - np.array([event.time_s for event in events])
            weight_P = weight_P * 0.5 ** (np.maximum(age_P, 0.0) / self._half_life_s)
        return evidence_PE, weight_P.astype(np.float32)

    def _basis(self, judge: Judge) -> tuple[str, float]:
        """Return what a vector inferred now is made with, and the time that ages are measured from."""
        if not self._half_life_s:
            return judge.fingerprint, 0.0
        tick = int(self._clock() * TICKS / self._half_life_s)
        return f"{judge.fingerprint}@{self._half_life_s:g}:{tick}", tick * self._half_life_s / TICKS

    def known(self, judge: Judge, key: Key) -> Known:
        """Return what is known of a stored user.

        Raises:
            StoreDown: the store did not answer.
            WireError: the user's comparisons cannot be encoded by this bundle.
        """
        return _known(judge, self.stored(judge, key))

    def stored(self, judge: Judge, key: Key) -> Standing:
        """Return one user of `standing`; raises what is wrong with them."""
        (standing,) = self.standing(judge, [key])
        if isinstance(standing, WireError):
            raise standing
        return standing

    def export(self, judge: Judge, key: Key) -> Exported:
        """Return all that is kept of a user."""
        known = self.known(judge, key)
        ((_, events),) = self._ask(lambda: self._store.events([key], raw=True))
        return Exported(
            known,
            [
                Stored(
                    event.event_id,
                    event.time_s,
                    event.weight,
                    raw.describe(event.chosen, judge.items),
                    raw.describe(event.rejected, judge.items),
                )
                for event in events
            ],
        )

    def forget(self, judge: Judge, key: Key, event_id: str) -> Known | None:
        """Remove one comparison, exactly: the user is as if it had never been. None: there is none."""
        state = self._ask(lambda: self._store.forget(key, event_id))
        return None if state is None else self.known(judge, key)

    def decay(self, judge: Judge, key: Key, factor: float, operation: str, at_s: float) -> Known | None:
        """Multiply the weights of comparisons up to a time; None: there are none."""
        state = self._ask(lambda: self._store.decay(key, factor, operation, at_s))
        return None if state is None else self.known(judge, key)

    def erase(self, key: Key) -> bool:
        """Erase a user; False: there was nothing."""
        return self._ask(lambda: self._store.erase(key, self._clock()))

    def transient(self, judge: Judge, comparisons: Comparisons) -> Standing:
        """Return a user who is not stored, adapted to the comparisons that came with a request."""
        evidence_PE = judge.encode(
            embeddings(judge, comparisons.chosen), embeddings(judge, comparisons.rejected)
        )
        order = np.argsort(np.array(comparisons.event_ids), kind="stable")
        weight_P = np.array(comparisons.weight_P, np.float32)
        vector_Z = judge.infer([(evidence_PE[order], weight_P[order])])[0]
        return Standing(0, len(weight_P), vector_Z)

    def trouble(self) -> str | None:
        """Return why the store does not answer; None where it does."""
        try:
            self._store.check()
        except StoreDown as error:
            return str(error)
        return None

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask the store, unless it has just failed."""
        if time.monotonic() < self._down_until_s:
            raise StoreDown("the store failed a moment ago and is left alone for a second; try again then.")
        try:
            return question()
        except StoreDown:
            self._down_until_s = time.monotonic() + PAUSE_S
            raise


def embeddings(judge: Judge, given: Items) -> np.ndarray:
    """Return the embeddings of items (N, width), in the type in which they came.

    Raises:
        WireError: a width, a row or an embedder that the bundle does not take.
    """
    if given.embedder is not None and given.embedder != judge.info.embedder:
        raise WireError(
            503,
            f"the service embeds text with {given.embedder.model}@{given.embedder.revision}, the bundle was "
            f"trained on {judge.info.embedder.model}@{judge.info.embedder.revision}; change `embed`.",
        )
    if len(given.emb_MD) and given.emb_MD.shape[1] != judge.width:
        raise WireError(
            422,
            f"embeddings are {given.emb_MD.shape[1]} wide, {judge.id} takes {judge.width}; embed with "
            f"{judge.info.embedder.model}.",
            "embedding",
        )
    registered = given.row_N >= 0
    if not registered.any():
        return given.emb_MD
    rows_N, count = given.row_N[registered], 0 if judge.items is None else len(judge.items)
    if rows_N.max() >= count or judge.items is None:
        raise WireError(
            422, f"item {rows_N.max()}: the service has {count} registered items, from 0.", "item"
        )
    emb_ND = np.empty((len(given), judge.width), np.float32)
    emb_ND[registered] = judge.items.gather(rows_N)
    emb_ND[~registered] = given.emb_MD
    return emb_ND


def _write(
    judge: Judge, call: Learn, chosen: list[bytes], rejected: list[bytes], evidence_PE: np.ndarray
) -> Write:
    given = call.comparisons
    events = [
        Event(event_id, time_s, weight, chosen_item, rejected_item, judge.fingerprint, part.tobytes())
        for event_id, time_s, weight, chosen_item, rejected_item, part in zip(
            given.event_ids,
            given.time_P,
            given.weight_P,
            chosen,
            rejected,
            evidence_PE.astype("<f4"),
            strict=True,
        )
    ]
    return Write(Key(call.tenant, call.user), tuple(events))


def _standing(judge: Judge, state: State) -> Standing:
    if not state.shots:
        return Standing(state.version, 0, judge.prior_Z)
    return Standing(state.version, state.shots, np.frombuffer(state.vector, "<f4"))


def _known(judge: Judge, standing: Standing) -> Known:
    place = judge.place(standing.vector_Z)
    if place is None:
        return Known(judge.id, standing.version, standing.shots, standing.vector_Z, None, None, [], False)
    weights_L = place.mean_BL[0]
    if place.bases_KL is not None:
        measure_K = (place.bases_KL - weights_L).norm(dim=1)
        order = measure_K.argsort()[:NEAREST]
    else:
        measure_K = weights_L
        order = weights_L.abs().argsort(descending=True)[:NEAREST]
    return Known(
        judge.id,
        standing.version,
        standing.shots,
        standing.vector_Z,
        weights_L.tolist(),
        None if place.var_BL is None else place.var_BL[0].sqrt().tolist(),
        [(int(basis), float(measure_K[basis])) for basis in order],
        place.bases_KL is not None,
    )
