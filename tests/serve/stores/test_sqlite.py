from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raypref.errors import CorruptError, MismatchError
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key, StoreDown
from tests.conftest import REPOSITORY
from tests.serve.stores.events import ANN, BEN, event, write
from tests.serve.stores.laws import Laws

WRITER = """
import sys
from raypref.serve.stores import open_store
from tests.serve.stores.events import ANN, event, write
store = open_store(sys.argv[1], timeout_s=30.0)
for number in range(int(sys.argv[3])):
    name = f"{sys.argv[2]}-{number}"
    assert write(store, ANN, event(name), limit=10**6).applied == 1
    print(name, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.db"


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, f"sqlite:///{path}", name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def holding(folder: Path, needles: list[bytes]) -> set[str]:
    """Names of files of a folder that hold one of some byte strings."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name for path in files if any(needle in path.read_bytes() for needle in needles)}


class TestSQLite(Laws):
    @pytest.fixture
    def url(self, path: Path) -> str:
        return f"sqlite:///{path}"


def test_processes_share_the_file(path: Path) -> None:
    writers = [writer(path, f"w{number}", 40) for number in range(3)]
    assert [process.communicate()[0].count("\n") for process in writers] == [40] * 3
    store = open_store(f"sqlite:///{path}")
    ((version, events),) = store.events([ANN])
    assert version == len(events) == 120
    store.close()


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_it_acknowledged(path: Path) -> None:
    chance = random.Random(7)
    acknowledged: set[str] = set()
    for kill in range(30):
        process = writer(path, f"k{kill}", 10**6)
        assert process.stdout is not None
        acknowledged.add(process.stdout.readline().strip())
        time.sleep(chance.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        acknowledged.update(line.strip() for line in process.stdout if line.endswith("\n"))
        process.wait()
        process.stdout.close()
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()
        store = open_store(f"sqlite:///{path}")
        ((version, events),) = store.events([ANN])
        store.close()
        assert acknowledged <= {one.event_id for one in events}
        assert version == len(events)
    assert len(acknowledged) > 60


def test_a_store_opened_again_knows_everything(path: Path) -> None:
    first = open_store(f"sqlite:///{path}")
    write(first, ANN, event("a"))
    write(first, BEN, event("a"))
    first.erase(BEN, 5.0)
    first.decay(ANN, 0.5, "op", 2.0)
    first.remember([(ANN, 2, "basis", b"vector")])
    before = first.read([ANN, BEN]), first.records([ANN, BEN]), list(first.tombstones())
    first.close()
    again = open_store(f"sqlite:///{path}")
    assert (again.read([ANN, BEN]), again.records([ANN, BEN]), list(again.tombstones())) == before
    again.close()


def test_no_byte_of_an_erased_user_is_left_after_compaction(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    ann, ben = Key("acme", "very-particular-ann"), Key("acme", "quite-ordinary-ben")
    secret, plain = b"SECRET-OF-ANN" * 400, b"WORDS-OF-BEN" * 400
    for number in range(20):
        write(store, ann, event(f"ann-event-{number}", chosen=secret, evidence=b"EVIDENCE-ANN"))
        write(store, ben, event(f"ben-event-{number}", chosen=plain))
    store.decay(ann, 0.5, "ann-operation", 5.0)
    store.remember([(ann, 21, "basis", b"VECTOR-OF-ANN")])
    store.forget(ben, "ben-event-3")
    needles = [b"SECRET-OF-ANN", b"EVIDENCE-ANN", b"VECTOR-OF-ANN", b"ann-", b"-ann"]
    assert holding(path.parent, needles)
    assert store.erase(ann, 5.0)
    store.compact()
    assert holding(path.parent, needles) == set()
    assert holding(path.parent, [b"ben-event-3"]) == set()
    assert holding(path.parent, [b"WORDS-OF-BEN"]) == {"users.db"}
    assert path.with_name("users.db-wal").stat().st_size == 0
    assert write(store, ann, event("ann-event-1")).erased == 1
    store.close()


def test_the_file_is_its_owners_alone(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    write(store, ANN, event("a"))
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"users.db": 0o600, "users.db-wal": 0o600, "users.db-shm": 0o600}
    store.close()


@pytest.mark.parametrize("data", [b"no database at all" * 500, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_refused(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="Restore it from a copy"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes() == data


def test_a_newer_version_is_refused(path: Path) -> None:
    open_store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(MismatchError, match="store version 2"):
        open_store(f"sqlite:///{path}")


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(MismatchError, match="another program's"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_locked_file_is_down_in_time_and_comes_back(path: Path) -> None:
    store = open_store(f"sqlite:///{path}", timeout_s=0.3)
    write(store, ANN, event("a"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(StoreDown, match="locked"):
        write(store, ANN, event("b"))
    assert 0.3 <= time.monotonic() - started < 1.3
    assert store.read([ANN])[0].version == 1
    other.execute("ROLLBACK")
    other.close()
    assert write(store, ANN, event("b")).state.version == 2
    store.close()


def test_a_full_disk_acknowledges_nothing(path: Path) -> None:
    program = f"""
import resource, signal
from raypref.serve.stores import open_store
from raypref.serve.stores.base import StoreDown
from tests.serve.stores.events import ANN, event, write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = open_store("sqlite:///{path}")
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
kept = []
try:
    for number in range(1000):
        write(store, ANN, event(str(number), chosen=bytes(5000)))
        kept.append(str(number))
except StoreDown:
    assert {{one.event_id for one in store.events([ANN])[0][1]}} == set(kept)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert write(store, ANN, event("after")).applied == 1
    print(len(kept))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


def test_a_file_that_was_taken_away_is_missed(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    store.close()
    path.unlink()
    with pytest.raises(StoreDown, match="unable to open"):
        store.check()
    assert not path.exists()


def test_many_first_starts_at_once_make_one_store(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        for attempt in range(25):
            url = f"sqlite:///{path.with_name(f'{attempt}.db')}"
            stores = list(threads.map(lambda _, url=url: open_store(url, timeout_s=20.0), range(8)))
            write(stores[0], ANN, event("a"))
            assert {store.setting("salt", "") for store in stores} == {stores[0].setting("salt", "")}
            assert all(store.read([ANN])[0].version == 1 for store in stores)
            for store in stores:
                store.close()


def test_relative_urls_are_relative(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    open_store("sqlite:///folder/users.db").close()
    assert (path.parent / "folder" / "users.db").is_file()


def test_a_folder_that_cannot_be_written_is_down(path: Path) -> None:
    path.parent.joinpath("file").write_text("")
    with pytest.raises(StoreDown, match="cannot be opened"):
        open_store(f"sqlite:///{path.parent}/file/users.db")
    assert os.listdir(path.parent) == ["file"]
