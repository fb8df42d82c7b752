from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from raypref.errors import ConfigError, MismatchError
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key, StoreDown
from tests.serve.stores.conftest import running
from tests.serve.stores.events import ANN, event, write
from tests.serve.stores.laws import Laws
from tests.serve.stores.servers import Postgres

pytestmark = pytest.mark.server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that the test may freeze and kill."""
    with running(Postgres) as server:
        assert isinstance(server, Postgres)
        yield server


class TestPostgres(Laws):
    @pytest.fixture
    def url(self, postgres: Postgres) -> str:
        return postgres.new_url()


@pytest.mark.parametrize("name", ["fsync", "synchronous_commit"])
def test_a_server_that_would_lose_acknowledged_events_is_refused(name: str, postgres: Postgres) -> None:
    url = postgres.new_url()
    postgres.execute(f"ALTER SYSTEM SET {name} = off")
    postgres.execute("SELECT pg_reload_conf()")
    try:
        deadline = time.monotonic() + 10
        while postgres.execute(f"SHOW {name}") != [("off",)] and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(ConfigError, match=f"{name} = on"):
            open_store(url)
    finally:
        postgres.execute(f"ALTER SYSTEM RESET {name}")
        postgres.execute("SELECT pg_reload_conf()")
        while postgres.execute(f"SHOW {name}") != [("on",)]:
            time.sleep(0.05)


def test_many_first_starts_at_once_make_one_schema(postgres: Postgres) -> None:
    url = postgres.new_url()
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: open_store(url, timeout_s=20.0), range(8)))
    write(stores[0], ANN, event("a"))
    assert all(store.read([ANN])[0].version == 1 for store in stores)
    for store in stores:
        store.close()


def test_a_newer_schema_is_refused(postgres: Postgres) -> None:
    url = postgres.new_url()
    open_store(url).close()
    postgres.execute(
        "UPDATE raypref.settings SET value = '2' WHERE name = 'store_version'", url.rpartition("/")[2]
    )
    with pytest.raises(MismatchError, match="store version 2"):
        open_store(url)


def test_crossing_batches_do_not_deadlock(postgres: Postgres) -> None:
    from raypref.serve.stores.base import Write

    store = open_store(postgres.new_url(), timeout_s=20.0)
    keys = [Key("acme", f"user{number}") for number in range(12)]

    def batches(worker: int) -> None:
        for step in range(10):
            order = keys if (worker + step) % 2 else keys[::-1]
            store.append([Write(key, (event(f"w{worker}-{step}"),)) for key in order], 10_000)
            store.remember([(key, 1, "basis", b"v") for key in order])

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(batches, range(6)))
    assert [state.version for state in store.read(keys)] == [60] * 12
    store.close()


def test_a_frozen_server_is_down_in_time_and_comes_back(own_postgres: Postgres) -> None:
    store = open_store(own_postgres.new_url(), timeout_s=2.0)
    write(store, ANN, event("a"))
    own_postgres.freeze()
    try:
        # The first finds a connection, the second has to make one.
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(StoreDown):
                write(store, ANN, event("b"))
            assert time.monotonic() - started < 3.0
        with pytest.raises(StoreDown):
            store.check()
    finally:
        own_postgres.thaw()
    started = time.monotonic()
    assert write(store, ANN, event("b"), event("c")).outcome == "applied"
    assert time.monotonic() - started < 2.0
    assert [one.event_id for one in store.events([ANN])[0][1]] == ["a", "b", "c"]
    store.close()


def test_a_killed_server_loses_nothing_and_is_found_again(own_postgres: Postgres) -> None:
    store = open_store(own_postgres.new_url(), timeout_s=2.0)
    acknowledged: list[str] = []
    stopped = threading.Event()

    def writer(number: int) -> None:
        step = 0
        while not stopped.is_set():
            step += 1
            try:
                write(store, ANN, event(f"w{number}-{step}"), limit=10**6)
            except StoreDown:
                return
            acknowledged.append(f"w{number}-{step}")

    with ThreadPoolExecutor(4) as threads:
        for number in range(4):
            threads.submit(writer, number)
        while len(acknowledged) < 20:
            time.sleep(0.02)
        own_postgres.kill()
        stopped.set()
    started = time.monotonic()
    with pytest.raises(StoreDown):
        store.read([ANN])
    assert time.monotonic() - started < 3.0
    own_postgres.start()
    ((version, events),) = store.events([ANN])
    assert set(acknowledged) <= {one.event_id for one in events}
    assert version == len(events)
    assert write(store, ANN, event("after")).applied == 1
    store.close()


def test_idle_connections_that_the_server_closed_are_not_used(own_postgres: Postgres) -> None:
    store = open_store(own_postgres.new_url(), timeout_s=5.0)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: write(store, ANN, event(str(number))), range(4)))
    own_postgres.kill()
    own_postgres.start()
    for number in range(4, 12):
        assert write(store, ANN, event(str(number))).applied == 1
    store.close()


def test_no_byte_of_an_erased_user_is_left_in_the_tables(own_postgres: Postgres) -> None:
    url = own_postgres.new_url()
    store = open_store(url, timeout_s=10.0)
    ann, ben = Key("acme", "very-particular-ann"), Key("acme", "quite-ordinary-ben")
    for number in range(20):
        write(store, ann, event(f"ann-event-{number}", chosen=b"SECRET-OF-ANN", evidence=b"EVIDENCE-ANN"))
        write(store, ben, event(f"ben-event-{number}", chosen=b"WORDS-OF-BEN"))
    store.remember([(ann, 20, "basis", b"VECTOR-OF-ANN")])
    own_postgres.execute("CHECKPOINT")
    needles = [b"SECRET-OF-ANN", b"EVIDENCE-ANN", b"VECTOR-OF-ANN", b"ann-event-", b"very-particular-ann"]

    def holding(folder: str, words: list[bytes]) -> bool:
        files = [path for path in (own_postgres.data / folder).rglob("*") if path.is_file()]
        return any(word in path.read_bytes() for path in files for word in words)

    assert all(holding("base", [needle]) for needle in needles)
    assert store.erase(ann, 5.0)
    store.compact()
    own_postgres.execute("CHECKPOINT")
    assert not holding("base", needles)
    assert holding("base", [b"WORDS-OF-BEN"])
    # The write-ahead log still has it: PostgreSQL overwrites those segments as it goes on.
    assert holding("pg_wal", needles)
    assert write(store, ann, event("ann-event-1")).erased == 1
    store.close()


def test_no_password_is_told(postgres: Postgres) -> None:
    with pytest.raises(StoreDown) as caught:
        open_store("postgresql://ann:hunter2@127.0.0.1:1/db", timeout_s=1.0)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="malformed") as caught:
        open_store("postgresql://ann:hunter2@127.0.0.1/db?nonsense=1")
    assert "hunter2" not in str(caught.value)
