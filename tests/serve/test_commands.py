from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raypref.cli import main
from raypref.serve.calls import Comparisons, Items, Learn
from raypref.serve.judge import Judge
from raypref.serve.keys import Keys
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key
from raypref.serve.users import Users
from tests.conftest import REPOSITORY
from tests.serve.world import DIM, make_bundle, some


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / f"vrf{seed}", seed=seed) for seed in range(2)]


def fill(url: str, bundle: Path, users: int = 20) -> None:
    store = open_store(url)
    judge = Judge.load(bundle, None)
    chosen, rejected = some(0, users, 3, DIM), some(1, users, 3, DIM)
    calls = [
        Learn(
            "acme",
            f"user-{number}",
            Comparisons(
                Items.of(chosen[number]), Items.of(rejected[number]), ("a", "b", "c"), (1.0,) * 3, (1.0,) * 3
            ),
        )
        for number in range(users)
    ]
    Users(store, 100).learn(judge, calls)
    store.close()


def test_a_key_is_made_used_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    assert main(["keys", "create", str(path), "--tenant", "acme"]) == 0
    key = capsys.readouterr().out.strip()
    assert Keys.load(path).tenant_of(key) == "acme"
    assert key.split("-", 2)[2] not in path.read_text()
    assert main(["keys", "revoke", str(path), key.split("-")[1]]) == 0
    assert Keys.load(path).tenant_of(key) is None


def test_a_tenant_must_be_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", str(tmp_path / "keys.json"), "--tenant", "a/b"]) == 2
    assert "tenant" in capsys.readouterr().err
    assert not (tmp_path / "keys.json").exists()


def test_users_move_to_another_store(
    tmp_path: Path, bundles: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"
    fill(first, bundles[0])
    assert main(["users", "export", "--store", first, str(tmp_path / "one.jsonl")]) == 0
    assert main(["users", "import", "--store", second, str(tmp_path / "one.jsonl")]) == 0
    assert main(["users", "export", "--store", second, str(tmp_path / "two.jsonl")]) == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert main(["users", "import", "--store", second, str(tmp_path / "one.jsonl")]) == 2
    assert "already" in capsys.readouterr().err


def test_refreshed_users_are_found_by_a_service_with_the_new_bundle(
    tmp_path: Path, bundles: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    fill(url, bundles[0])
    job = REPOSITORY / "jobs/refresh_users.py"
    done = subprocess.run(
        [sys.executable, str(job), "--store", url, str(bundles[1])], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "20 users inferred, 0 could not be" in done.stdout
    store, judge = open_store(url), Judge.load(bundles[1], None)
    key = Key("acme", "user-3")
    (state,) = store.read([key])
    assert (state.basis, state.version) == (judge.fingerprint, 3)
    evidence_PE = judge.encode(some(0, 20, 3, DIM)[3], some(1, 20, 3, DIM)[3])
    expected_Z = judge.infer([(evidence_PE, np.ones(3, np.float32))])[0]
    np.testing.assert_allclose(np.frombuffer(state.vector, "<f4"), expected_Z, rtol=1e-5, atol=1e-6)
    store.close()


def test_compacting_leaves_nothing_of_an_erased_user(
    tmp_path: Path, bundles: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    fill(url, bundles[0])
    store = open_store(url)
    store.erase(Key("acme", "user-7"), at_s=2.0)
    store.close()
    assert main(["users", "compact", "--store", url]) == 0
    assert "nothing erased is left" in capsys.readouterr().out
    for path in tmp_path.iterdir():
        assert b"user-7" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["users", "compact", "--store", "mysql://x"], "mysql"),
        (["users", "import", "--store", "memory:", "missing.jsonl"], "missing.jsonl"),
        (["users", "refresh", "--store", "memory:", "missing"], "no bundle here"),
    ],
)
def test_rubbish_is_refused_with_what_to_do(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_service_without_a_configuration_or_a_bundle_is_refused_before_ray_starts(tmp_path: Path) -> None:
    def serve(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "raypref", "serve", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        return done.stderr

    assert "missing.yaml" in serve("missing.yaml")
    assert "no bundle here" in serve(str(REPOSITORY / "serve_configs/local.yaml"))
    assert "bundel: unknown key" in serve(str(REPOSITORY / "serve_configs/local.yaml"), "--set", "bundel=x")
