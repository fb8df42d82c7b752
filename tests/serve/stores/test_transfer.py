from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypref.errors import CorruptError, InputError, MismatchError
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Event, Key, Store
from raypref.serve.transfer import PAGE, export_store, import_store
from tests.serve.stores.events import ANN, BEN, LOGS, event, write

KINDS = [
    "memory",
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.server),
    pytest.param("redis", marks=pytest.mark.server),
]


@pytest.fixture
def new(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Store]]:
    """Return an empty store of a kind; of Redis, one at a time."""
    made: list[Store] = []

    def make(kind: str) -> Store:
        if kind == "memory":
            url = "memory:"
        elif kind == "sqlite":
            url = f"sqlite:///{tmp_path}/{len(made)}.db"
        else:
            url = request.getfixturevalue("postgres" if kind == "postgres" else "redis_server").new_url()
        made.append(open_store(url, timeout_s=20.0))
        return made[-1]

    yield make
    for store in made:
        store.close()


def fill(store: Store) -> None:
    """Everything that a store can hold."""
    store.setting("embedder", "minilm@1")
    write(store, ANN, event("a", 1.0, 1 / 3), event("b", 2.5e9, 5e-324), event("c", 0.0))
    store.decay(ANN, 0.7, "op-2", 2.0)
    store.decay(ANN, 0.1, "op-1", 3e9)
    store.forget(ANN, "c")
    store.reencode(ANN, "bundle-2", [("a", b"\x00\xff")])
    store.remember([(ANN, 6, "basis", b"vector")])
    write(store, BEN, event("a"))
    store.erase(BEN, 4.25)
    write(store, BEN, event("later", 5.0))
    for number in range(PAGE + 3):
        write(store, Key("other", f"user{number}"), event("x", float(number)))
    store.forget(Key("other", "user7"), "x")
    store.erase(Key("other", "user8"), 1e-9)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_users_move_between_any_two_stores_unchanged(
    source: str, target: str, new: Callable[[str], Store], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    one = new(source)
    fill(one)
    keys = one.keys(limit=10_000)
    records, stones = one.records(keys), list(one.tombstones())
    states = [state.version for state in one.read([*keys, Key("other", "user8")])]
    export_store(one, first)
    other = new(target)
    import_store(first, other)
    assert other.keys(limit=10_000) == keys
    assert other.records(keys) == records
    assert list(other.tombstones()) == stones
    assert [state.version for state in other.read([*keys, Key("other", "user8")])] == states
    export_store(other, second)
    assert second.read_bytes() == first.read_bytes()
    for key, late in ((ANN, "c"), (BEN, "a"), (Key("other", "user8"), "x")):
        assert write(other, key, event(late, 1e10)).erased == 1
    assert other.decay(ANN, 0.5, "op-1", 9.0) == other.read([ANN])[0]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs=st.lists(LOGS, max_size=4))
def test_any_users_survive_the_file(logs: list[list[Event]], tmp_path: Path) -> None:
    one, other = open_store("memory:"), open_store("memory:")
    for number, events in enumerate(logs):
        write(one, Key("acme", f"user{number}"), *events)
    export_store(one, tmp_path / "users.jsonl")
    import_store(tmp_path / "users.jsonl", other)
    assert other.records(other.keys()) == one.records(one.keys())


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    store = open_store("memory:")
    fill(store)
    path = tmp_path / "users.jsonl"
    export_store(store, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_users_who_are_there_already_are_refused(
    kind: str, exported: Path, new: Callable[[str], Store], tmp_path: Path
) -> None:
    store = new(kind)
    import_store(exported, store)
    before = store.records(store.keys(limit=10_000))
    with pytest.raises(InputError, match="already"):
        import_store(exported, store)
    assert store.records(store.keys(limit=10_000)) == before


@pytest.mark.parametrize("cut", [0, 1, 40, 0.3, 0.9, -1, -2, -30, -90])
def test_a_file_cut_short_is_refused(cut: float, exported: Path) -> None:
    data = exported.read_bytes()
    exported.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    store = open_store("memory:")
    with pytest.raises(CorruptError):
        import_store(exported, store)
    assert store.keys() == []
    assert store.setting("salt", "") == ""


def test_a_line_left_out_is_refused(exported: Path) -> None:
    lines = exported.read_bytes().splitlines(keepends=True)
    for place in (1, len(lines) // 2, len(lines) - 2, len(lines) - 1):
        exported.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
        with pytest.raises(CorruptError):
            import_store(exported, open_store("memory:"))


def test_any_altered_byte_is_refused(exported: Path) -> None:
    data = exported.read_bytes()
    for place in range(0, len(data), 97):
        exported.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        store = open_store("memory:")
        with pytest.raises((CorruptError, MismatchError)):
            import_store(exported, store)
        assert store.keys() == []


def test_another_version_is_refused(exported: Path) -> None:
    header, rest = exported.read_bytes().split(b"\n", 1)
    exported.write_bytes(json.dumps(json.loads(header) | {"version": 2}).encode() + b"\n" + rest)
    with pytest.raises(MismatchError, match="export version 2"):
        import_store(exported, open_store("memory:"))


@pytest.mark.parametrize(("name", "value"), [("salt", "ab" * 32), ("embedder", "other@2")])
def test_a_store_of_another_kind_is_refused(name: str, value: str, exported: Path) -> None:
    store = open_store("memory:")
    store.setting(name, value)
    with pytest.raises(MismatchError, match=f"another {name}"):
        import_store(exported, store)
    assert store.keys() == []


def test_an_export_that_fails_keeps_the_old_file(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = exported.read_bytes()
    store = open_store("memory:")
    fill(store)

    def broken() -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store, "tombstones", broken)
    with pytest.raises(OSError, match="disk full"):
        export_store(store, exported)
    assert exported.read_bytes() == before
    assert list(exported.parent.iterdir()) == [exported]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        import_store(tmp_path / "nothing", open_store("memory:"))
