from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from raypref.errors import ConfigError
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key, StoreDown
from tests.serve.stores.conftest import running
from tests.serve.stores.events import ANN, event, write
from tests.serve.stores.laws import Laws
from tests.serve.stores.servers import Redis

pytestmark = pytest.mark.server


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """A server that the test may set, freeze and kill."""
    with running(Redis) as server:
        assert isinstance(server, Redis)
        yield server


class TestRedis(Laws):
    @pytest.fixture
    def url(self, redis_server: Redis) -> str:
        return redis_server.new_url()


@pytest.mark.parametrize(
    ("settings", "accepted"),
    [
        ({"appendonly": "no", "appendfsync": "always"}, {"none"}),
        ({"appendonly": "yes", "appendfsync": "no"}, {"none"}),
        ({"appendonly": "yes", "appendfsync": "everysec"}, {"everysec", "none"}),
        ({"appendonly": "yes", "appendfsync": "always"}, {"", "always", "everysec", "none"}),
        (
            {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "yes"},
            {"everysec", "none"},
        ),
        ({"maxmemory-policy": "allkeys-lru"}, set[str]()),
    ],
    ids=str,
)
def test_an_acknowledgement_means_what_the_url_says(
    settings: dict[str, str], accepted: set[str], own_redis: Redis
) -> None:
    with own_redis.client() as client:
        for name, value in settings.items():
            client.config_set(name, value)
    durable: set[str] = set()
    for said in ("", "always", "everysec", "none"):
        url = own_redis.address(f"?durability={said}" if said else "")
        if said in accepted:
            store = open_store(url)
            durable.add(store.durable)
            store.close()
        else:
            with pytest.raises(ConfigError, match=r"Set |set "):
                open_store(url)
    assert len(durable) == len(accepted - {""})


def test_a_server_that_hides_its_settings_has_to_be_vouched_for(own_redis: Redis) -> None:
    with own_redis.client() as client:
        client.acl_setuser(
            "ann", enabled=True, passwords=["+pass"], keys=["*"], commands=["+@all", "-config"]
        )
    address = own_redis.address().replace("redis://", "redis://ann:pass@")
    with pytest.raises(ConfigError, match=r"\?durability="):
        open_store(address)
    store = open_store(f"{address}?durability=always")
    assert write(store, ANN, event("a")).applied == 1
    store.close()


def test_an_unknown_durability_is_refused(redis_server: Redis) -> None:
    with pytest.raises(ConfigError, match="durability=sometimes"):
        open_store(redis_server.address("?durability=sometimes"))


def test_a_url_of_valkey_is_taken(redis_server: Redis) -> None:
    store = open_store(redis_server.new_url().replace("redis://", "valkey://"))
    assert write(store, ANN, event("a")).applied == 1
    store.close()


def test_scripts_that_the_server_forgot_are_sent_again(own_redis: Redis) -> None:
    store = open_store(own_redis.address())
    for number in range(3):
        with own_redis.client() as client:
            client.script_flush()
        assert write(store, ANN, event(str(number))).state.version == number + 1
    store.close()


def test_a_large_log_fits_through_the_scripts(redis_server: Redis) -> None:
    store = open_store(redis_server.new_url(), timeout_s=20.0)
    assert write(store, ANN, *(event(f"{number:04}") for number in range(4096)), limit=5000).applied == 4096
    state = store.decay(ANN, 0.5, "op", 2.0)
    assert state is not None
    assert state.version == 4097
    assert {one.weight for one in store.events([ANN])[0][1]} == {0.5}
    assert store.erase(ANN, 9.0)
    (stone,) = store.tombstones()
    assert len(stone.events) == 4096
    store.close()


def test_a_frozen_server_is_down_in_time_and_comes_back(own_redis: Redis) -> None:
    store = open_store(own_redis.address(), timeout_s=1.0)
    write(store, ANN, event("a"))
    own_redis.freeze()
    try:
        for attempt in (lambda: write(store, ANN, event("b")), lambda: store.read([ANN]), store.check):
            started = time.monotonic()
            with pytest.raises(StoreDown):
                attempt()
            assert time.monotonic() - started < 2.0
    finally:
        own_redis.thaw()
    assert write(store, ANN, event("b")).outcome == "applied"
    assert [one.event_id for one in store.events([ANN])[0][1]] == ["a", "b"]
    store.close()


def test_a_killed_server_loses_nothing_and_is_found_again(own_redis: Redis) -> None:
    store = open_store(own_redis.address(), timeout_s=2.0)
    for number in range(50):
        write(store, ANN, event(f"{number:02}"))
    own_redis.kill()
    with pytest.raises(StoreDown):
        write(store, ANN, event("lost"))
    own_redis.start()
    ((version, events),) = store.events([ANN])
    assert [one.event_id for one in events] == [f"{number:02}" for number in range(50)]
    assert version == 50
    assert write(store, ANN, event("after")).applied == 1
    store.close()


def test_no_byte_of_an_erased_user_is_left_after_compaction(own_redis: Redis) -> None:
    store = open_store(own_redis.address(), timeout_s=5.0)
    ann, ben = Key("acme", "very-particular-ann"), Key("acme", "quite-ordinary-ben")
    for number in range(20):
        write(store, ann, event(f"ann-event-{number}", chosen=b"SECRET-OF-ANN", evidence=b"EVIDENCE-ANN"))
        write(store, ben, event(f"ben-event-{number}", chosen=b"WORDS-OF-BEN"))
    store.decay(ann, 0.5, "ann-operation", 5.0)
    store.remember([(ann, 21, "basis", b"VECTOR-OF-ANN")])
    needles = [b"SECRET-OF-ANN", b"EVIDENCE-ANN", b"VECTOR-OF-ANN", b"ann-event-", b"very-particular-ann"]

    def holding(words: list[bytes]) -> bool:
        files = [path for path in own_redis.folder.rglob("*.aof") if path.is_file()]
        return any(word in path.read_bytes() for path in files for word in words)

    assert all(holding([needle]) for needle in needles)
    assert store.erase(ann, 5.0)
    store.compact()
    # The server unlinks the old files in the background.
    deadline = time.monotonic() + 5
    while holding(needles) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not holding([*needles, b"ann-operation"])
    own_redis.kill()
    own_redis.start()
    assert write(store, ann, event("ann-event-1")).erased == 1
    assert store.events([ben])[0][0] == 20
    store.close()


def test_no_password_is_told() -> None:
    with pytest.raises(StoreDown) as caught:
        open_store("redis://ann:hunter2@127.0.0.1:1/0", timeout_s=1.0)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="malformed"):
        open_store("redis://ann:hunter2@127.0.0.1:port/0")
