"""Laws that every store keeps, for any events; a part of the contract."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypref.serve.stores import open_store
from raypref.serve.stores.base import Event, Key, Store, Write
from tests.serve.stores.contract import Contract
from tests.serve.stores.events import EVENTS, IDS, LOGS, write

# One law is inherited by several stores, and each of its examples has a user of its own.
ACCEPTED = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow]
LAW = settings(max_examples=25, deadline=None, suppress_health_check=ACCEPTED)
numbers = itertools.count()


def newcomer(user: str = "ann") -> Key:
    """A user whom no example before has met."""
    return Key(f"tenant-{next(numbers)}", user)


class Laws(Contract):
    @LAW
    @given(events=LOGS, data=st.data())
    def test_any_order_grouping_and_repetition_of_writes_is_the_same_user(
        self, events: list[Event], data: st.DataObject, store: Store
    ) -> None:
        plain, mixed = newcomer(), newcomer()
        write(store, plain, *events)
        sent = data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events), max_size=6))))
        while sent:
            size = data.draw(st.integers(1, len(sent)))
            calls = [Write(mixed, tuple(sent[:size])), Write(mixed, tuple(sent[size : 2 * size]))]
            assert all(written.outcome == "applied" for written in store.append(calls, 1000))
            sent = sent[2 * size :]
        one, other = store.records([plain, mixed])
        assert replace(other, key=plain) == one
        assert one.version == len(events)
        assert one.events == tuple(sorted(events, key=lambda event: event.event_id))

    @LAW
    @given(events=LOGS, factor=st.floats(0, 1, exclude_min=True, exclude_max=True), at_s=st.floats(0, 1e11))
    def test_decay_is_the_same_product_everywhere(
        self, events: list[Event], factor: float, at_s: float, store: Store
    ) -> None:
        there, reference, key = store, open_store("memory:"), newcomer()
        for one in (there, reference):
            write(one, key, *events)
            one.decay(key, factor, "op", at_s)
            one.decay(key, factor, "op-2", at_s / 2)
        assert [repr(event.weight) for event in there.records([key])[0].events] == [
            repr(event.weight) for event in reference.records([key])[0].events
        ]

    @LAW
    @given(
        names=st.lists(IDS, min_size=2, max_size=2, unique=True),
        steps=st.lists(st.tuples(st.sampled_from("wfder"), EVENTS), min_size=1, max_size=8),
        apart=st.sampled_from(["tenant", "user"]),
    )
    def test_nothing_done_to_one_user_touches_another(
        self, names: list[str], steps: list[tuple[str, Event]], apart: str, store: Store
    ) -> None:
        own = f"-{next(numbers)}"
        bystander, busy = (
            (Key(names[0] + own, "ann"), Key(names[1] + own, "ann"))
            if apart == "tenant"
            else (Key("acme" + own, names[0]), Key("acme" + own, names[1]))
        )
        event = steps[0][1]
        write(store, bystander, event)
        store.remember([(bystander, 1, "basis", b"vector")])
        before = store.read([bystander]), store.records([bystander])
        for step, one in steps:
            if step == "w":
                write(store, busy, one)
            elif step == "f":
                store.forget(busy, one.event_id)
                store.forget(busy, event.event_id)
            elif step == "d":
                store.decay(busy, 0.5, one.event_id, 1e11)
            elif step == "e":
                store.erase(busy, 1e11)
            else:
                store.reencode(busy, "other", [(event.event_id, b"other")])
                store.remember([(busy, 1, "other", b"other")])
        assert (store.read([bystander]), store.records([bystander])) == before

    @LAW
    @given(events=LOGS)
    def test_an_erased_user_is_not_brought_back_by_retries(self, events: list[Event], store: Store) -> None:
        key = newcomer()
        write(store, key, *events)
        version = store.read([key])[0].version
        assert store.erase(key, 0.0)
        again = write(store, key, *events)
        assert (again.applied, again.erased) == (0, len(events))
        assert store.read([key])[0].version == version + 1
        assert store.records([key])[0].events == ()
