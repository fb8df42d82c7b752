from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypref.data.items import ItemTable, write_items
from raypref.schema import HASH_BYTES
from raypref.serve import raw, slots
from raypref.serve.calls import Comparisons, Items, Learn, Learned
from raypref.serve.judge import Judge
from raypref.serve.refresh import refresh
from raypref.serve.standings import SECONDS_PER_DAY, TICKS
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key, Store, StoreDown
from raypref.serve.stores.memory import MemoryStore
from raypref.serve.users import Users
from raypref.wire.errors import WireError
from tests.serve.conftest import MakeBundle
from tests.serve.local import ANN, comparisons
from tests.serve.world import DIM, METHOD_NAMES, embedder_of, some

BEN = Key("default", "ben")
MANY = 12


@pytest.fixture(params=METHOD_NAMES)
def judge(request: pytest.FixtureRequest, bundle_of: MakeBundle) -> Judge:
    return Judge.load(bundle_of(request.param), None)


@pytest.fixture
def vrf(bundle_of: MakeBundle) -> Judge:
    return Judge.load(bundle_of("vrf"), None)


class Pool:
    """Comparisons to draw from, by number."""

    def __init__(self, judge: Judge) -> None:
        self.chosen_ND = some(1, MANY, judge.width)
        self.rejected_ND = some(2, MANY, judge.width)

    def of(self, numbers: Iterable[int], **changes: Sequence[float]) -> Comparisons:
        rows = list(numbers)
        ids = [f"e{row}" for row in rows]
        return comparisons(self.chosen_ND[rows], self.rejected_ND[rows], ids, **changes)


def new(store: Store | None = None, **options: object) -> Users:
    return Users(store or MemoryStore(), 1000, **options)  # type: ignore[arg-type]


def learn(users: Users, judge: Judge, given: Comparisons, key: Key = ANN) -> Learned:
    (answer,) = users.learn(judge, [Learn(*key, given)])
    assert isinstance(answer, Learned), answer
    return answer


def vector(users: Users, judge: Judge, key: Key = ANN) -> bytes:
    return users.stored(judge, key).vector_Z.tobytes()


HISTORIES = st.lists(st.lists(st.integers(0, MANY - 1), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=HISTORIES, shuffle=st.randoms(use_true_random=False))
def test_any_order_and_grouping_and_repetition_is_the_same_user_to_the_bit(
    judge: Judge, requests: list[list[int]], shuffle: random.Random
) -> None:
    pool, numbers = Pool(judge), sorted({number for request in requests for number in request})
    users = new()
    for request in requests:
        learn(users, judge, pool.of(request))
    other = new()
    shuffle.shuffle(numbers)
    learn(other, judge, pool.of(numbers))
    assert users.stored(judge, ANN).shots == other.stored(judge, ANN).shots == len(numbers)
    assert users.stored(judge, ANN).version == other.stored(judge, ANN).version
    assert vector(users, judge) == vector(other, judge)
    ((_, first),), ((_, second),) = users._line.store.events([ANN]), other._line.store.events([ANN])
    assert first == second


def test_company_changes_no_bit(judge: Judge) -> None:
    """Users who are learned and inferred in one batch, and each alone, have the same vectors."""
    pool, users, alone = Pool(judge), new(), new()
    keys = [Key("default", f"u{number}") for number in range(23)]
    calls = [Learn(*key, pool.of(range(1 + number % MANY))) for number, key in enumerate(keys)]
    assert all(isinstance(answer, Learned) for answer in users.learn(judge, calls))
    for call in calls:
        assert isinstance(alone.learn(judge, [call])[0], Learned)
    assert [vector(users, judge, key) for key in keys] == [vector(alone, judge, key) for key in keys]
    plain_UZ = [judge.infer([_history(users, judge, key)])[0] for key in keys]
    np.testing.assert_allclose(
        np.stack(plain_UZ), np.stack([users.stored(judge, key).vector_Z for key in keys]), atol=1e-5
    )


def _history(users: Users, judge: Judge, key: Key) -> tuple[np.ndarray, np.ndarray]:
    ((_, events),) = users._line.store.events([key])
    evidence_PE = np.frombuffer(b"".join(event.evidence for event in events), "<f4")
    return evidence_PE.reshape(len(events), judge.evidence_width), np.ones(len(events), np.float32)


def test_nobody_inferred_in_slots_is_the_prior(judge: Judge) -> None:
    nothing = np.zeros((0, judge.evidence_width), np.float32), np.zeros(0, np.float32)
    np.testing.assert_allclose(slots.infer(judge, [nothing])[0], judge.prior_Z, atol=1e-6)
    assert slots.infer(judge, []).shape == (0, len(judge.prior_Z))


@pytest.mark.parametrize("gone", range(4))
def test_forgetting_a_comparison_is_never_having_had_it(judge: Judge, gone: int) -> None:
    pool, users, never = Pool(judge), new(), new()
    learn(users, judge, pool.of(range(4)))
    assert users.forget(judge, ANN, "none-such") is None
    known = users.forget(judge, ANN, f"e{gone}")
    assert known is not None
    assert (known.shots, known.version) == (3, 5)
    learn(never, judge, pool.of(number for number in range(4) if number != gone))
    assert vector(users, judge) == vector(never, judge)
    late = learn(users, judge, pool.of([gone]))
    assert (late.applied, late.erased, late.known.shots) == (0, 1, 3)
    assert vector(users, judge) == vector(never, judge)


def test_forgetting_all_is_knowing_nothing(judge: Judge) -> None:
    users = new()
    learn(users, judge, Pool(judge).of([0]))
    known = users.forget(judge, ANN, "e0")
    assert known is not None
    assert (known.shots, known.version) == (0, 2)
    np.testing.assert_array_equal(known.vector_Z, judge.prior_Z)


def test_an_erased_user_stays_away_and_may_begin_anew(vrf: Judge) -> None:
    pool, users = Pool(vrf), new(clock=lambda: 100.0)
    learn(users, vrf, pool.of([0, 1], times=[50.0, 60.0]))
    assert users.erase(ANN)
    assert not users.erase(ANN)
    known = users.known(vrf, ANN)
    assert (known.shots, known.version) == (0, 3)
    np.testing.assert_array_equal(known.vector_Z, vrf.prior_Z)
    late = learn(users, vrf, pool.of([0, 1, 2], times=[500.0, 60.0, 99.0]))
    assert (late.applied, late.erased, late.known.shots, late.known.version) == (0, 3, 0, 3)
    anew = learn(users, vrf, pool.of([3], times=[100.5]))
    assert (anew.applied, anew.erased, anew.known.shots, anew.known.version) == (1, 0, 1, 4)
    fresh = new()
    learn(fresh, vrf, pool.of([3]))
    assert vector(users, vrf) == vector(fresh, vrf)


def test_decay_counts_once_and_for_what_is_older(judge: Judge) -> None:
    pool, users, weighed = Pool(judge), new(), new()
    learn(users, judge, pool.of([0, 1, 2], times=[1.0, 2.0, 3.0], weights=[1.0, 4.0, 1.0]))
    for _ in range(3):
        known = users.decay(judge, ANN, 0.25, "spring", 2.0)
        assert known is not None
        assert known.version == 4
    learn(weighed, judge, pool.of([0, 1, 2], weights=[0.25, 1.0, 1.0]))
    assert vector(users, judge) == vector(weighed, judge)
    assert users.decay(judge, BEN, 0.25, "spring", 2.0) is None


DAYS = 8.0
HALF_LIFE_S = DAYS * SECONDS_PER_DAY


def test_a_comparison_one_half_life_old_counts_half(judge: Judge) -> None:
    pool, now_s = Pool(judge), 1000 * HALF_LIFE_S
    aged = new(half_life_days=DAYS, clock=lambda: now_s)
    ages = [0.0, HALF_LIFE_S, 2 * HALF_LIFE_S]
    learn(aged, judge, pool.of([0, 1, 2], times=[now_s - age for age in ages], weights=[1.0, 1.0, 4.0]))
    half = new()
    learn(half, judge, pool.of([0, 1, 2], weights=[1.0, 0.5, 1.0]))
    assert vector(aged, judge) == vector(half, judge)


def test_kept_vectors_last_a_tick(vrf: Judge) -> None:
    pool, now_s, store = Pool(vrf), [1000 * HALF_LIFE_S], MemoryStore()
    users = new(store, half_life_days=DAYS, clock=lambda: now_s[0])
    learn(users, vrf, pool.of([0, 1], times=[now_s[0], now_s[0] - 3 * HALF_LIFE_S]))
    at_first, (kept,) = vector(users, vrf), store.read([ANN])
    now_s[0] += 0.99 * HALF_LIFE_S / TICKS
    assert vector(users, vrf) == at_first
    assert store.read([ANN]) == [kept]
    now_s[0] += 0.02 * HALF_LIFE_S / TICKS
    assert vector(users, vrf) != at_first
    (later,) = store.read([ANN])
    assert (later.version, later.basis != kept.basis) == (kept.version, True)
    now_s[0] += 200 * HALF_LIFE_S
    np.testing.assert_allclose(users.stored(vrf, ANN).vector_Z, vrf.prior_Z, atol=1e-5)


def test_older_comparisons_pull_less(vrf: Judge) -> None:
    pool, now_s = Pool(vrf), 1000 * HALF_LIFE_S
    away: list[float] = []
    for age in (0.0, 1.0, 2.0, 4.0):
        users = new(half_life_days=DAYS, clock=lambda: now_s)
        learn(users, vrf, pool.of([0], times=[now_s - age * HALF_LIFE_S]))
        away.append(float(np.abs(users.stored(vrf, ANN).vector_Z - vrf.prior_Z).sum()))
    assert away == sorted(away, reverse=True)
    assert away[-1] < away[0] / 2


def test_a_passing_user_equals_a_stored_one(judge: Judge) -> None:
    pool, users = Pool(judge), new()
    given = pool.of([4, 0, 2], weights=[1.0, 0.5, 2.0])
    learn(users, judge, given)
    assert users.transient(judge, given).vector_Z.tobytes() == vector(users, judge)


def test_a_new_bundle_infers_users_from_what_was_given(bundle_of: MakeBundle) -> None:
    old, successor = Judge.load(bundle_of("vrf"), None), Judge.load(bundle_of("lore", seed=1), None)
    pool, users, fresh = Pool(old), new(), new()
    learn(users, old, pool.of(range(5)))
    learn(fresh, successor, pool.of(range(5)))
    before = vector(users, old)
    assert vector(users, successor) == vector(fresh, successor)
    assert users.stored(successor, ANN).version == 5
    assert users._line.store.events([ANN]) == fresh._line.store.events([ANN])
    assert vector(users, old) == before


def test_refreshed_in_bulk_as_one_by_one(bundle_of: MakeBundle) -> None:
    old, path = Judge.load(bundle_of("vrf"), None), bundle_of("pref", seed=1)
    successor = Judge.load(path, None)
    pool, store, lazy = Pool(old), MemoryStore(), new()
    keys = [Key("default", f"u{number}") for number in range(9)]
    for users in (new(store), lazy):
        users.learn(old, [Learn(*key, pool.of(range(1 + number))) for number, key in enumerate(keys)])
    pages: list[int] = []
    assert refresh(path, None, store, None, pages.append) == (9, [])
    assert pages == [9]
    for key in keys:
        (state,) = store.read([key])
        assert (state.basis, state.vector) == (successor.fingerprint, vector(lazy, successor, key))


class Table:
    """An items table on disk, and the embedding of each text by its name."""

    def __init__(self, folder: Path, names: Sequence[int]) -> None:
        self.emb_ND = some(7, MANY, DIM).astype(np.float16)
        keys = [bytes([name]) * HASH_BYTES for name in names]
        parts = [(np.frombuffer(b"".join(keys), f"V{HASH_BYTES}"), self.emb_ND[list(names)])]
        write_items(folder, embedder_of(), parts)
        self.table = ItemTable.open(folder)
        self.row = {name: row for row, name in enumerate(names)}

    def items(self, names: Sequence[int]) -> Items:
        rows_N = np.array([self.row[name] for name in names])
        return Items(np.zeros((0, 0), np.float32), rows_N)


def test_ids_survive_a_table_made_again_in_another_order(tmp_path: Path, bundle_of: MakeBundle) -> None:
    first, second = Table(tmp_path / "a", range(MANY)), Table(tmp_path / "b", [*range(MANY - 1, -1, -1)])
    lacking = Table(tmp_path / "c", range(1, MANY))
    old = Judge.load(bundle_of("vrf"), first.table)
    given = Comparisons(first.items([0, 2]), first.items([1, 3]), ("a", "b"), (1.0, 1.0), (1.0, 1.0))
    plain = comparisons(first.emb_ND[[0, 2]], first.emb_ND[[1, 3]], ["a", "b"])
    users, fresh = new(), new()
    learn(users, old, given)
    learn(fresh, old, plain)
    assert vector(users, old) == vector(fresh, old)
    again = Judge.load(bundle_of("vrf", seed=1), second.table)
    assert vector(users, again) == vector(fresh, again)
    exported = users.export(again, ANN).comparisons
    assert [kept.chosen for kept in exported] == [{"item": MANY - 1}, {"item": MANY - 3}]
    # The same comparison under the new numbers is the same comparison.
    same = Comparisons(second.items([0, 2]), second.items([1, 3]), ("a", "b"), (1.0, 1.0), (1.0, 1.0))
    assert learn(users, again, same).duplicates == 2
    without = Judge.load(bundle_of("vrf", seed=2), lacking.table)
    problem = users.standing(without, [ANN]).one(0)
    assert isinstance(problem, WireError)
    assert problem.status == 503
    assert "lacks 1 items" in problem.message
    assert vector(users, again) == vector(fresh, again)


def test_what_is_wrong_with_one_user_is_no_other_users_matter(tmp_path: Path, bundle_of: MakeBundle) -> None:
    table = Table(tmp_path / "a", range(MANY))
    old, successor = Judge.load(bundle_of("vrf"), table.table), Judge.load(bundle_of("vrf", seed=1), None)
    users = new()
    given = Comparisons(table.items([0]), table.items([1]), ("a",), (1.0,), (1.0,))
    learn(users, old, given)
    learn(users, old, Pool(old).of([0]), BEN)
    problem, fine = map(users.standing(successor, [ANN, BEN]).one, range(2))
    assert isinstance(problem, WireError)
    assert not isinstance(fine, WireError)
    calls = [
        Learn(*ANN, comparisons(some(1, 1, DIM + 1), some(2, 1, DIM + 1))),
        Learn(*ANN, given),
        Learn(*BEN, Pool(old).of([1])),
    ]
    width, item, applied = users.learn(successor, calls)
    assert isinstance(width, WireError)
    assert isinstance(item, WireError)
    assert (width.status, item.status) == (422, 422)
    assert isinstance(applied, Learned)
    assert applied.known.shots == 2


def test_too_many_comparisons_and_taken_ids_change_nothing(vrf: Judge) -> None:
    store = MemoryStore()
    pool, users = Pool(vrf), Users(store, 3)
    learn(users, vrf, pool.of([0, 1]))
    before = store.records([ANN])
    (full,) = users.learn(vrf, [Learn(*ANN, pool.of([2, 3]))])
    taken = comparisons(pool.chosen_ND[[5, 2]], pool.rejected_ND[[5, 2]], ["e0", "e2"])
    (conflict,) = users.learn(vrf, [Learn(*ANN, taken)])
    assert isinstance(full, WireError)
    assert isinstance(conflict, WireError)
    assert (full.status, conflict.status) == (422, 409)
    assert "e0" in conflict.message
    assert "e2" not in conflict.message
    assert store.records([ANN]) == before


def test_embeddings_without_measure_are_not_kept(judge: Judge) -> None:
    """What no user could be inferred from is refused before it is stored, and fails no other request."""
    store = MemoryStore()
    pool, users = Pool(judge), new(store)
    for power in (4, 8, 12, 16, 20, 25, 30, 38):
        huge = (10.0 ** np.linspace(0, power, MANY)[:, None]).astype(np.float32)
        with np.errstate(over="ignore"):
            chosen_PD, rejected_PD = pool.chosen_ND * huge, pool.rejected_ND * huge
        given = comparisons(chosen_PD, rejected_PD, weights=[1e6] * MANY)
        name = Key("default", f"u{power}")
        answer, fine = users.learn(judge, [Learn(*name, given), Learn(*BEN, pool.of([power % MANY]))])
        assert isinstance(fine, Learned)
        if isinstance(answer, WireError):
            assert answer.status == 422
            assert store.records([name])[0].version == 0
        else:
            assert np.isfinite(answer.known.vector_Z).all()


def test_a_user_whom_the_solver_fails_on_is_no_other_users_matter(bundle_of: MakeBundle) -> None:
    judge = Judge.load(bundle_of("lore"), None)
    evidence_PE = judge.encode(some(1, 20, DIM), some(2, 20, DIM))
    fine = evidence_PE, np.ones(20, np.float32)
    bad = np.full_like(evidence_PE, np.nan), np.ones(20, np.float32)
    found_UZ = slots.infer(judge, [fine, bad, fine])
    assert not np.isfinite(found_UZ[1]).any()
    np.testing.assert_array_equal(found_UZ[0], found_UZ[2])
    np.testing.assert_array_equal(found_UZ[0], slots.infer(judge, [fine])[0])
    assert np.isfinite(found_UZ[0]).all()


@pytest.mark.parametrize("damage", [np.full(1, np.nan), np.full(1, np.inf), np.zeros(3)])
def test_a_damaged_vector_or_evidence_is_made_again(damage: np.ndarray, vrf: Judge) -> None:
    store = MemoryStore()
    pool, users = Pool(vrf), new(store)
    learn(users, vrf, pool.of([0, 1]))
    right = vector(users, vrf)
    rubbish = damage.astype("<f4").tobytes()
    wrong = rubbish * (len(vrf.prior_Z) if damage.size == 1 else 1)
    store.remember([(ANN, 2, vrf.fingerprint, wrong)])
    assert vector(users, vrf) == right
    assert store.read([ANN])[0].vector == right
    store.reencode(ANN, vrf.fingerprint, [("e0", rubbish * (vrf.evidence_width if damage.size == 1 else 1))])
    store.remember([(ANN, 2, "", b"")])
    assert vector(users, vrf) == right


def test_an_old_vector_never_wins(vrf: Judge) -> None:
    """Writers and readers at once: what is kept in the end was inferred from the whole log."""
    store = MemoryStore()
    pool = Pool(vrf)
    workers = [new(store) for _ in range(4)]

    def work(number: int) -> None:
        for step in range(number, MANY, 4):
            learn(workers[number], vrf, pool.of([step]))
            workers[number].stored(vrf, ANN)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    fresh = new()
    learn(fresh, vrf, pool.of(range(MANY)))
    assert vector(workers[0], vrf) == vector(fresh, vrf)
    (state,) = store.read([ANN])
    assert (state.version, state.vector) == (MANY, vector(fresh, vrf))
    store.remember([(ANN, MANY - 1, vrf.fingerprint, b"old")])
    assert store.read([ANN]) == [state]


class Brittle(MemoryStore):
    """A store that takes nothing any more, or does not answer at all."""

    full = down = False
    asked = 0

    def read(self, keys: Sequence[Key]) -> list:
        self.asked += 1
        if self.down:
            raise StoreDown("down")
        return super().read(keys)

    def remember(self, vectors: Iterable[tuple[Key, int, str, bytes]]) -> None:
        if self.full or self.down:
            raise StoreDown("full")
        super().remember(vectors)

    def reencode(self, key: Key, encoder: str, evidence: Sequence[tuple[str, bytes]]) -> None:
        if self.full or self.down:
            raise StoreDown("full")
        super().reencode(key, encoder, evidence)


def test_a_store_that_can_only_be_read_still_tells_users(bundle_of: MakeBundle) -> None:
    old, successor = Judge.load(bundle_of("vrf"), None), Judge.load(bundle_of("vrf", seed=1), None)
    store, fresh = Brittle(), new()
    pool, users = Pool(old), new(store)
    learn(users, old, pool.of([0]))
    learn(fresh, successor, pool.of([0]))
    store.full = True
    for _ in range(2):
        assert vector(users, successor) == vector(fresh, successor)


def test_a_store_that_failed_is_left_alone_for_a_moment(vrf: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("raypref.serve.line.time.monotonic", lambda: now_s[0])
    store = Brittle()
    users = new(store)
    store.down = True
    for _ in range(5):
        with pytest.raises(StoreDown):
            users.stored(vrf, ANN)
    assert store.asked == 1
    store.down = False
    now_s[0] += 0.9
    with pytest.raises(StoreDown, match="left alone"):
        users.stored(vrf, ANN)
    now_s[0] += 0.2
    assert users.stored(vrf, ANN).shots == 0


def test_a_store_of_another_bundles_embedder_is_refused(tmp_path: Path, bundle_of: MakeBundle) -> None:
    from raypref.errors import ConfigError
    from tests.serve.local import Local

    url = f"sqlite:///{tmp_path}/users.db"
    Local(bundle_of("vrf"), url).close()
    store = open_store(url)
    assert "test" in store.setting("embedder", "")
    store.close()
    again = Local(bundle_of("vrf"), url)
    again.close()
    other = tmp_path / "other.db"
    store = open_store(f"sqlite:///{other}")
    store.setting("embedder", embedder_of(DIM).model_copy(update={"revision": "2"}).model_dump_json())
    store.close()
    with pytest.raises(ConfigError, match="store of its own"):
        Local(bundle_of("vrf"), f"sqlite:///{other}")


def test_items_are_kept_as_they_came() -> None:
    for dtype in (np.float16, np.float32):
        emb_ND = some(1, 3, DIM).astype(dtype)
        kept = raw.pack(Items.of(emb_ND), None)
        np.testing.assert_array_equal(raw.unpack(kept, None, DIM), emb_ND.astype(np.float32))
