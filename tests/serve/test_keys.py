from __future__ import annotations

import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raypref.errors import ConfigError
from raypref.serve import keys as module
from raypref.serve.keys import Keys, create_key, revoke_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def id_of(key: str) -> str:
    return key.split("-")[1]


def test_a_key_opens_its_tenant(path: Path) -> None:
    acme, umbrella = create_key(path, "acme"), create_key(path, "umbrella")
    keys = Keys.load(path)
    assert keys.tenant_of(acme) == "acme"
    assert keys.tenant_of(umbrella) == "umbrella"
    assert re.fullmatch(r"rp-[A-Za-z0-9_]{8,}-[A-Za-z0-9_-]{43}", acme)


def test_no_other_string_opens_anything(path: Path) -> None:
    key, other = create_key(path, "acme"), create_key(path, "umbrella")
    keys = Keys.load(path)
    stolen = json.loads(path.read_text())[0]["sha256"]
    wrong = [
        None,
        "",
        key[:-1],
        key + "x",
        key.upper(),
        " " + key,
        key.replace("rp-", "xx-"),
        f"rp-{id_of(key)}-{other.split('-', 2)[2]}",
        f"rp-{id_of(key)}-",
        f"rp-{id_of(key)}",
        f"rp-{id_of(key)}-{stolen}",
        stolen,
        "rp--",
        "rp-nobody00-" + "a" * 43,
        "é" * 40,
        "\ud800",
        key * 1000,
        "nobody",
    ]
    assert [keys.tenant_of(presented) for presented in wrong] == [None] * len(wrong)


def test_only_digests_are_kept(path: Path) -> None:
    key = create_key(path, "acme")
    text = path.read_text()
    assert key not in text
    assert key.split("-", 2)[2] not in text
    (entry,) = json.loads(text)
    assert set(entry) == {"id", "tenant", "sha256", "created"}
    assert entry["id"] == id_of(key)


def test_the_file_is_the_owners_alone_and_nothing_is_left_beside_it(path: Path) -> None:
    for _ in range(2):
        revoke_key(path, id_of(create_key(path, "acme")))
        create_key(path, "acme")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


@pytest.mark.parametrize("mode", [0o600, 0o440, 0o640])
def test_a_group_may_read_as_of_a_mounted_secret(mode: int, path: Path) -> None:
    key = create_key(path, "acme")
    path.chmod(mode)
    assert Keys.load(path).tenant_of(key) == "acme"


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o610, 0o644])
def test_a_file_open_to_others_is_refused(mode: int, path: Path) -> None:
    create_key(path, "acme")
    path.chmod(mode)
    for use in (Keys.load, lambda path: create_key(path, "acme")):
        with pytest.raises(ConfigError, match="chmod 600"):
            use(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"id": "aaaaaaaa"}]',
        '[{"id":"aaaaaaaa","tenant":"../b","sha256":"%s","created":1}]' % ("0" * 64),
        '[{"id":"aaaaaaaa","tenant":"b","sha256":"00","created":1}]',
        '[{"id":"aaaaaaaa","tenant":"b","sha256":"%s","created":1,"secret":"x"}]' % ("0" * 64),
        "\x00\xff",
    ],
)
def test_rubbish_is_refused_and_kept(text: str, path: Path) -> None:
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"keys\.json: no key file"):
        Keys.load(path)
    with pytest.raises(ConfigError):
        create_key(path, "acme")
    assert path.read_text() == text


def test_two_keys_of_one_id_are_refused(path: Path) -> None:
    create_key(path, "acme")
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    with pytest.raises(ConfigError, match="same id"):
        Keys.load(path)


def test_a_missing_file_says_what_to_do(path: Path) -> None:
    for use in (Keys.load, lambda path: revoke_key(path, "aaaaaaaa")):
        with pytest.raises(ConfigError, match="Create a key first"):
            use(path)


@pytest.mark.parametrize("tenant", ["", "a b", "../x", ".x", "a/b", "x" * 129, "é", "a\n"])
def test_a_tenant_that_is_no_name_is_refused(tenant: str, path: Path) -> None:
    with pytest.raises(ConfigError, match="no name for a tenant"):
        create_key(path, tenant)
    assert not path.exists()


def test_a_revoked_key_opens_nothing_and_others_stay(path: Path) -> None:
    gone, stays = create_key(path, "acme"), create_key(path, "acme")
    revoke_key(path, id_of(gone))
    keys = Keys.load(path)
    assert keys.tenant_of(gone) is None
    assert keys.tenant_of(stays) == "acme"
    with pytest.raises(ConfigError, match="has no key"):
        revoke_key(path, id_of(gone))


def test_many_writers_lose_no_key(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda number: create_key(path, f"t{number}"), range(16)))
    keys = Keys.load(path)
    assert [keys.tenant_of(key) for key in made] == [f"t{number}" for number in range(16)]


def test_a_changed_file_counts_within_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    first = create_key(path, "acme")
    keys = Keys.load(path)
    second = create_key(path, "umbrella")
    revoke_key(path, id_of(first))
    assert keys.tenant_of(first) == "acme"
    now_s += module.CHECK_S
    assert keys.tenant_of(first) is None
    assert keys.tenant_of(second) == "umbrella"


def test_a_file_that_broke_changes_nothing_until_it_is_mended(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    key = create_key(path, "acme")
    keys = Keys.load(path)
    good = path.read_text()
    for text in ("[", None):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        now_s += module.CHECK_S
        assert keys.tenant_of(key) == "acme"
        assert "keys stay as they were" in caplog.text
        caplog.clear()
    path.write_text(good)
    path.chmod(0o600)
    now_s += module.CHECK_S
    revoke_key(path, id_of(key))
    assert keys.tenant_of(key) is None


def test_an_unchanged_file_is_looked_at_once_a_second_and_never_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    key = create_key(path, "acme")
    keys = Keys.load(path)
    looks: list[Path] = []
    stamp = module._stamp
    monkeypatch.setattr(module, "_stamp", lambda path: looks.append(path) or stamp(path))
    monkeypatch.setattr(module, "_read", lambda path: pytest.fail("read again"))
    for _ in range(5):
        now_s += module.CHECK_S
        for _ in range(10):
            assert keys.tenant_of(key) == "acme"
    assert len(looks) == 5
