from __future__ import annotations

from pathlib import Path

import pytest

from raypref import files
from raypref.errors import InputError

MARKER = "part"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_directory_vanishes(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "new" / "folders" / "table"

    def interrupted() -> None:
        with files.new_directory(target, MARKER) as work:
            (work / MARKER).write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_new_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "table"
    for content in ("first", "second"):
        with files.new_directory(target, MARKER) as work:
            (work / MARKER).write_text(content)
            (work / content).write_text(content)
    assert sorted(path.name for path in target.iterdir()) == [MARKER, "second"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    folder, file = tmp_path / "thesis", tmp_path / "input.jsonl"
    folder.mkdir()
    (folder / "chapter").write_text("years of work")
    file.write_text("data")
    for target in (folder, file, tmp_path):
        with pytest.raises(InputError, match="would be replaced"), files.new_directory(target, MARKER):
            pass
    assert (folder / "chapter").read_text() == "years of work"
    assert sorted(tmp_path.iterdir()) == [file, folder]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "table"
    target.mkdir()
    with files.new_directory(target, MARKER) as work:
        (work / MARKER).write_text("whole")
    assert (target / MARKER).read_text() == "whole"
