"""Users: adding to their logs, taking from them, and telling what is known of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from raypref.serve import raw, slots
from raypref.serve.calls import Exported, Known, Learn, Learned, Stored
from raypref.serve.judge import Judge
from raypref.serve.spans import within
from raypref.serve.standings import Standing, Standings
from raypref.serve.stores.base import Event, Key, Store, StoreDown, Write, Written
from raypref.wire.errors import WireError

NEAREST = 3
"""Bases that an answer names."""

MUCH = 1e4
"""Weight times squared evidence of a comparison that hardly is one, of embeddings of no sane size."""


class Users(Standings):
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
        super().__init__(store, half_life_days, clock)
        self._limit = max_comparisons

    def learn(self, judge: Judge, calls: Sequence[Learn]) -> list[Learned | WireError]:
        """Add comparisons in one durable commit, and return what is known of each user then.

        Raises:
            StoreDown: nothing was acknowledged; what was committed all the same, a retry finds.
        """
        answers: dict[int, Learned | WireError] = {}
        given: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for number, call in enumerate(calls):
            try:
                chosen, rejected = call.comparisons.chosen, call.comparisons.rejected
                given[number] = raw.embeddings(judge, chosen), raw.embeddings(judge, rejected)
            except WireError as error:
                answers[number] = error
        writes: dict[int, Write] = {}
        if given:
            chosen_ND, rejected_ND = map(np.concatenate, zip(*given.values(), strict=True))
            with within("encoding", comparisons=len(chosen_ND)):
                evidence_NE = slots.encode(judge, chosen_ND, rejected_ND)
            first = 0
            for number, (chosen_PD, _) in given.items():
                evidence_PE = evidence_NE[first : first + len(chosen_PD)]
                first += len(chosen_PD)
                if _sound(judge, evidence_PE, calls[number]):
                    writes[number] = _write(judge, calls[number], evidence_PE)
                else:
                    answers[number] = WireError(
                        422,
                        "the comparisons give no finite vector: embeddings or weights are too large. "
                        "Nothing of this request was kept.",
                        "comparisons",
                    )
        if writes:
            every = list(writes.values())
            written = self._line.ask(lambda store: store.append(every, self._limit), "write", len(every))
            crowd = self.standing(judge, [write.key for write in every])
            for row, (number, result) in enumerate(zip(writes, written, strict=True)):
                answers[number] = self._learned(judge, result, crowd.one(row))
        return [answers[number] for number in range(len(calls))]

    def _learned(self, judge: Judge, written: Written, standing: Standing | WireError) -> Learned | WireError:
        if written.outcome == "conflict":
            return WireError(
                409,
                f"event_id {', '.join(written.conflicts)}: already names another comparison; "
                "draw a new id. Nothing of this request was kept.",
                "comparisons",
            )
        if written.outcome == "full":
            return WireError(
                422,
                f"a user may have {self._limit} comparisons, and has {written.state.shots}; "
                "delete some. Nothing of this request was kept.",
                "comparisons",
            )
        if isinstance(standing, WireError):
            return standing
        return Learned(_known(judge, standing), written.applied, written.duplicates, written.erased)

    def known(self, judge: Judge, key: Key) -> Known:
        """Return what is known of a stored user.

        Raises:
            StoreDown: the store did not answer.
            WireError: the user's comparisons cannot be encoded by this bundle.
        """
        return _known(judge, self.stored(judge, key))

    def export(self, judge: Judge, key: Key) -> Exported:
        """Return all that is kept of a user."""
        known = self.known(judge, key)
        ((_, events),) = self._line.ask(lambda store: store.events([key], raw=True))
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
        state = self._line.ask(lambda store: store.forget(key, event_id), "write")
        return None if state is None else self.known(judge, key)

    def decay(self, judge: Judge, key: Key, factor: float, operation: str, at_s: float) -> Known | None:
        """Multiply the weights of comparisons up to a time; None: there are none."""
        state = self._line.ask(lambda store: store.decay(key, factor, operation, at_s), "write")
        return None if state is None else self.known(judge, key)

    def erase(self, key: Key) -> bool:
        """Erase a user; False: there was nothing."""
        return self._line.ask(lambda store: store.erase(key, self._clock()), "write")

    def trouble(self) -> str | None:
        """Return why the store does not answer; None where it does."""
        try:
            self._line.store.check()
        except StoreDown as error:
            return str(error)
        return None


def _sound(judge: Judge, evidence_PE: np.ndarray, call: Learn) -> bool:
    """Return whether a user can be inferred from these comparisons: what is stored is refused too late."""
    weight_P = np.array(call.comparisons.weight_P, np.float32)
    with np.errstate(over="ignore"):
        much = float((np.abs(evidence_PE).max(1, initial=0) ** 2 * weight_P).max())
    return much <= MUCH or bool(np.isfinite(slots.infer(judge, [(evidence_PE, weight_P)])).all())


def _write(judge: Judge, call: Learn, evidence_PE: np.ndarray) -> Write:
    given = call.comparisons
    events = [
        Event(event_id, time_s, weight, chosen, rejected, judge.fingerprint, part.tobytes())
        for event_id, time_s, weight, chosen, rejected, part in zip(
            given.event_ids,
            given.time_P,
            given.weight_P,
            raw.pack(given.chosen, judge.items),
            raw.pack(given.rejected, judge.items),
            evidence_PE.astype("<f4"),
            strict=True,
        )
    ]
    return Write(Key(call.tenant, call.user), tuple(events))


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
