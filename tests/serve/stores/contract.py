"""What every store must do. A store's test inherits it and supplies `url`, of an empty store."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest

from raypref.errors import InputError
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key, Record, State, Store, Tombstone, Write, event_digest, owner_digest
from tests.serve.stores.events import ANN, BEN, event, write


class Contract:
    """Inherit, and set the fixture `url`."""

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        store = open_store(url, timeout_s=10.0)
        yield store
        store.close()

    def test_it_says_what_an_acknowledgement_means(self, store: Store) -> None:
        assert store.durable.endswith(".")
        assert store.nodes in ("one", "many")
        store.check()

    def test_nobody_is_known_at_first(self, store: Store) -> None:
        assert store.read([ANN, BEN]) == [State(), State()]
        assert store.events([ANN]) == [(0, ())]
        assert store.records([ANN]) == [Record(ANN, 0, ())]
        assert store.keys() == []
        assert list(store.tombstones()) == []
        assert store.forget(ANN, "a") is None
        assert store.decay(ANN, 0.5, "op", 9.0) is None
        assert not store.erase(ANN, 9.0)
        assert list(store.tombstones()) == []

    def test_nothing_asked_is_nothing_answered(self, store: Store) -> None:
        assert store.read([]) == store.events([]) == store.append([], 9) == store.records([]) == []
        store.remember([])
        store.reencode(ANN, "bundle-2", [])
        assert write(store, ANN).outcome == "applied"
        assert store.keys() == []

    def test_events_are_kept_as_given_and_ordered_by_id(self, store: Store) -> None:
        events = (event("b", 2.5, 0.1), event("a", 1e11, 1e6), event("B", 0.0, 5e-324), event("a-", 1 / 3))
        written = write(store, ANN, *events)
        assert (written.outcome, written.applied, written.state) == ("applied", 4, State(4, 4))
        ordered = tuple(sorted(events, key=lambda event: event.event_id))
        assert store.events([BEN, ANN], raw=True) == [(0, ()), (4, ordered)]
        lean = tuple(replace(event, chosen=b"", rejected=b"") for event in ordered)
        assert store.events([ANN, ANN]) == [(4, lean), (4, lean)]
        assert store.read([BEN, ANN, ANN]) == [State(), State(4, 4), State(4, 4)]
        assert store.records([ANN]) == [Record(ANN, 4, ordered)]

    def test_the_same_comparison_again_changes_nothing(self, store: Store) -> None:
        first = event("a", 5.0, 2.0)
        write(store, ANN, first)
        again = write(store, ANN, replace(first, time_s=7.0, weight=9.0, encoder="x", evidence=b"other"))
        assert (again.outcome, again.applied, again.duplicates, again.state) == ("applied", 0, 1, State(1, 1))
        assert store.events([ANN], raw=True) == [(1, (first,))]
        both = write(store, ANN, first, event("b"), event("b"))
        assert (both.applied, both.duplicates, both.state) == (1, 2, State(2, 2))

    @pytest.mark.parametrize("item", ["chosen", "rejected"])
    def test_another_comparison_under_a_taken_id_conflicts(self, item: str, store: Store) -> None:
        write(store, ANN, event("a"))
        before = store.records([ANN])
        other = replace(event("a"), **{item: b"another"})
        written = write(store, ANN, event("b"), other)
        assert (written.outcome, written.conflicts, written.state) == ("conflict", ("a",), State(1, 1))
        assert (written.applied, written.duplicates, written.erased) == (0, 0, 0)
        within = write(store, BEN, event("b"), replace(event("b"), **{item: b"another"}))
        assert (within.outcome, within.conflicts) == ("conflict", ("b",))
        assert store.records([ANN]) == before
        assert store.keys() == [ANN]

    def test_a_full_log_takes_all_or_nothing(self, store: Store) -> None:
        write(store, ANN, event("a"), event("b"), limit=3)
        full = write(store, ANN, event("c"), event("d"), limit=3)
        assert (full.outcome, full.applied, full.state) == ("full", 0, State(2, 2))
        assert write(store, ANN, event("a"), event("c"), limit=3).state == State(3, 3)
        again = write(store, ANN, event("a"), event("b"), limit=1)
        assert (again.outcome, again.duplicates, again.state) == ("applied", 2, State(3, 3))

    def test_writes_of_one_call_are_judged_in_order(self, store: Store) -> None:
        writes = [
            Write(ANN, (event("a"), event("b"))),
            Write(BEN, (event("a"),)),
            Write(ANN, (replace(event("a"), chosen=b"x"), event("z"))),
            Write(ANN, (event("b"), event("c"))),
            Write(ANN, (event("d"), event("e"))),
            Write(ANN, (event("d"),)),
        ]
        written = store.append(writes, 4)
        assert [one.outcome for one in written] == ["applied"] * 2 + [
            "conflict",
            "applied",
            "full",
            "applied",
        ]
        assert [one.state.version for one in written] == [2, 1, 2, 3, 3, 4]
        assert written[3].duplicates == 1
        assert store.read([ANN, BEN]) == [State(4, 4), State(1, 1)]
        assert [one.event_id for one in store.events([ANN])[0][1]] == ["a", "b", "c", "d"]

    def test_a_forgotten_comparison_stays_away(self, store: Store) -> None:
        write(store, ANN, event("a"), event("b"))
        store.remember([(ANN, 2, "basis", b"vector")])
        assert store.forget(ANN, "a") == State(3, 1)
        assert store.forget(ANN, "a") is None
        assert store.forget(ANN, "c") is None
        assert store.read([ANN]) == [State(3, 1)]
        for late in (event("a", 9.0), replace(event("a"), chosen=b"another")):
            written = write(store, ANN, late)
            assert (written.outcome, written.erased, written.state) == ("applied", 1, State(3, 1))
        salt = store.setting("salt", "")
        stone = Tombstone(owner_digest(salt, ANN), 0, 0.0, (event_digest(salt, ANN, "a"),))
        assert list(store.tombstones()) == [stone]
        assert write(store, ANN, event("at-0", 0.0)).applied == 1
        assert store.events([ANN])[0][0] == 4

    def test_a_user_without_comparisons_left_is_still_there(self, store: Store) -> None:
        write(store, ANN, event("a"))
        assert store.forget(ANN, "a") == State(2, 0)
        assert store.decay(ANN, 0.5, "op", 9.0) is None
        assert store.keys() == [ANN]
        assert store.records([ANN]) == [Record(ANN, 2, ())]
        assert store.erase(ANN, 9.0)

    def test_decay_multiplies_what_is_not_younger_once(self, store: Store) -> None:
        write(store, ANN, event("a", 1.0, 0.1), event("b", 2.0, 3.3), event("c", 2.0000001, 0.7))
        store.remember([(ANN, 3, "basis", b"vector")])
        assert store.decay(ANN, 0.3, "op-1", 2.0) == State(4, 3)
        assert store.decay(ANN, 0.9, "op-1", 5.0) == State(4, 3)
        assert [one.weight for one in store.events([ANN])[0][1]] == [0.1 * 0.3, 3.3 * 0.3, 0.7]
        assert store.read([ANN]) == [State(4, 3)]
        assert store.decay(ANN, 0.7, "op-0", 3.0) == State(5, 3)
        (record,) = store.records([ANN])
        assert [one.weight for one in record.events] == [0.1 * 0.3 * 0.7, 3.3 * 0.3 * 0.7, 0.7 * 0.7]
        assert record.operations == ("op-0", "op-1")
        assert write(store, ANN, event("a", 1.0, 0.1)).duplicates == 1
        assert store.records([ANN]) == [record]

    def test_no_decay_takes_a_weight_to_zero(self, store: Store) -> None:
        write(store, ANN, event("a", weight=1e-300), event("b", weight=5e-324))
        for number in range(4):
            store.decay(ANN, 1e-30, f"op-{number}", 1.0)
        assert all(one.weight > 0 for one in store.events([ANN])[0][1])

    def test_an_erased_user_leaves_only_what_turns_retries_away(self, store: Store) -> None:
        write(store, ANN, event("a", 10.0), event("future", 99.0))
        write(store, BEN, event("a"))
        store.forget(ANN, "a")
        store.decay(ANN, 0.5, "op", 50.0)
        store.remember([(ANN, 4, "basis", b"vector")])
        assert store.erase(ANN, 20.0)
        assert not store.erase(ANN, 30.0)
        assert store.read([ANN, BEN]) == [State(5, 0), State(1, 1)]
        assert store.events([ANN]) == [(5, ())]
        assert store.records([ANN]) == [Record(ANN, 0, ())]
        assert store.keys() == [BEN]
        salt = store.setting("salt", "")
        digests = tuple(sorted(event_digest(salt, ANN, name) for name in ("a", "future")))
        assert list(store.tombstones()) == [Tombstone(owner_digest(salt, ANN), 5, 20.0, digests)]

        late = write(store, ANN, event("a", 90.0), event("future", 99.0), event("old", 20.0))
        assert (late.outcome, late.applied, late.erased, late.state) == ("applied", 0, 3, State(5, 0))
        assert store.keys() == [BEN]
        store.remember([(ANN, 5, "basis", b"vector")])
        assert store.read([ANN]) == [State(5, 0)]

        back = write(store, ANN, event("new", 20.5), event("a", 90.0))
        assert (back.applied, back.erased, back.state) == (1, 1, State(6, 1))
        assert store.records([ANN]) == [Record(ANN, 6, (event("new", 20.5),))]
        assert store.decay(ANN, 0.5, "op", 50.0) == State(7, 1)

    def test_a_second_erasure_remembers_the_first(self, store: Store) -> None:
        write(store, ANN, event("a", 1.0))
        store.erase(ANN, 100.0)
        write(store, ANN, event("b", 200.0))
        assert store.erase(ANN, 50.0)
        (stone,) = store.tombstones()
        assert (stone.version, stone.erased_s, len(stone.events)) == (4, 100.0, 2)
        assert write(store, ANN, event("c", 100.0), event("b", 300.0)).erased == 2

    def test_an_erasure_at_time_zero_turns_time_zero_away(self, store: Store) -> None:
        write(store, ANN, event("a", 0.0))
        store.erase(ANN, 0.0)
        assert write(store, ANN, event("b", 0.0)).erased == 1
        assert write(store, ANN, event("c", 0.5)).applied == 1

    def test_versions_only_grow(self, store: Store) -> None:
        chance, seen, last = random.Random(3), [0], 1.0
        for step in range(60):
            last += 1
            action = chance.choice(["write", "write", "forget", "decay", "erase"])
            if action == "write":
                write(store, ANN, event(f"e{step}", last))
            elif action == "forget":
                store.forget(ANN, f"e{chance.randrange(60)}")
            elif action == "decay":
                store.decay(ANN, 0.9, f"op{step}", last)
            else:
                store.erase(ANN, last)
            seen.append(store.read([ANN])[0].version)
        assert all(later - earlier in (0, 1) for earlier, later in pairwise(seen))
        assert seen[-1] > 30

    def test_only_a_vector_of_this_version_is_remembered(self, store: Store) -> None:
        write(store, ANN, event("a"))
        store.remember([(ANN, 0, "old", b"x"), (ANN, 2, "early", b"x"), (BEN, 0, "nobody", b"x")])
        assert store.read([ANN, BEN]) == [State(1, 1), State()]
        store.remember(iter([(ANN, 1, "bundle-1", b"\x00\xffvector")]))
        assert store.read([ANN]) == [State(1, 1, "bundle-1", b"\x00\xffvector")]
        assert write(store, ANN, event("a")).state == State(1, 1)
        assert store.read([ANN]) == [State(1, 1, "bundle-1", b"\x00\xffvector")]
        store.remember([(ANN, 1, "bundle-2", b"newer")])
        assert store.read([ANN]) == [State(1, 1, "bundle-2", b"newer")]
        write(store, ANN, event("b"))
        assert store.read([ANN]) == [State(2, 2)]

    def test_reencoding_replaces_the_evidence_of_what_still_exists(self, store: Store) -> None:
        write(store, ANN, event("a", 4.0, 0.3), event("b"), event("c"))
        store.forget(ANN, "c")
        store.reencode(ANN, "bundle-2", [("a", b"new"), ("c", b"gone"), ("never", b"x")])
        store.reencode(BEN, "bundle-2", [("a", b"new")])
        ((version, (a, b)),) = store.events([ANN], raw=True)
        assert version == 4
        assert a == replace(event("a", 4.0, 0.3), encoder="bundle-2", evidence=b"new")
        assert b == event("b")
        assert store.keys() == [ANN]

    def test_keys_come_in_order_and_in_pages(self, store: Store) -> None:
        keys = [
            Key(tenant, user) for tenant in ("b", "a", "a-", "A") for user in ("x", "Z", "~", "x1", "é", "😀")
        ]
        store.append([Write(key, (event("a"),)) for key in keys], 9)
        assert store.keys() == sorted(keys)
        pages, after = [], None
        while page := store.keys(after, limit=5):
            assert len(page) <= 5
            pages += page
            after = page[-1]
        assert pages == sorted(keys)
        assert store.keys(Key("a", "nobody"), 1) == [Key("a", "x")]

    def test_concurrent_writers_of_one_user_lose_nothing(self, store: Store) -> None:
        def writer(number: int) -> list[int]:
            versions = []
            for step in range(20):
                names = [f"w{number}-{step}", f"w{number}-{step}b", f"shared-{step}"]
                versions.append(write(store, ANN, *map(event, names)).state.version)
            return versions

        with ThreadPoolExecutor(8) as threads:
            versions = list(threads.map(writer, range(8)))
        assert all(one == sorted(one) for one in versions)
        ((version, events),) = store.events([ANN])
        assert version == len(events) == 8 * 20 * 2 + 20
        assert store.read([ANN]) == [State(version, version)]

    def test_a_setting_is_set_once_under_a_race(self, store: Store) -> None:
        barrier = threading.Barrier(8)

        def contend(number: int) -> str:
            barrier.wait()
            return store.setting("embedder", f"value {number}")

        with ThreadPoolExecutor(8) as threads:
            (winner,) = set(threads.map(contend, range(8)))
        assert store.setting("embedder", "late") == winner
        assert store.setting("other", "") == ""
        assert store.setting("other", "first") == "first"

    def test_the_salt_is_drawn_once(self, store: Store) -> None:
        assert store.setting("salt", "") == ""
        write(store, ANN, event("a"))
        salt = store.setting("salt", "ff" * 32)
        assert len(bytes.fromhex(salt)) == 32
        assert salt != "ff" * 32

    def test_what_is_restored_is_refused_where_it_is_already(self, store: Store) -> None:
        write(store, ANN, event("a"))
        write(store, BEN, event("a"))
        store.erase(BEN, 5.0)
        records, stones = store.records([ANN]), list(store.tombstones())
        newcomer = Record(Key("acme", "cem"), 3, (event("a"),))
        known = Tombstone(owner_digest(store.setting("salt", ""), ANN), 9, 1.0)
        for refused in (
            ([newcomer, *records], []),
            ([newcomer, Record(BEN, 9, ())], []),
            ([newcomer], stones),
            ([newcomer], [known]),
            ([newcomer, newcomer], []),
        ):
            with pytest.raises(InputError, match="already"):
                store.restore(*refused)
            assert store.keys() == [ANN]
            assert store.records([ANN]) == records
            assert list(store.tombstones()) == stones

    def test_compacting_changes_nothing_that_is_alive(self, store: Store) -> None:
        write(store, ANN, event("a"))
        write(store, BEN, event("a"))
        store.remember([(ANN, 1, "basis", b"vector")])
        store.erase(BEN, 5.0)
        before = store.read([ANN, BEN]), store.records([ANN]), list(store.tombstones())
        store.compact()
        assert (store.read([ANN, BEN]), store.records([ANN]), list(store.tombstones())) == before
