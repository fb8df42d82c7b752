from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypref import files
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.population import progress as progress_module
from raypref.population.output import PARTS, Output, PartFile, PartWriter, fixed_lists, floats
from raypref.population.plan import Part
from raypref.population.progress import Progress

SCHEMA = pa.schema([pa.field("user", pa.int32(), nullable=False)])
PART = Part(0, 0, 3, ())


def write(output: Output, rows: int) -> PartFile:
    with PartWriter(output.work, f"{PARTS}/{PART.name}", SCHEMA) as writer:
        for row in range(rows):
            writer.write([pa.array([row], pa.int32())])
    return writer.file


def interrupted(output: Output) -> None:
    with PartWriter(output.work, f"{PARTS}/{PART.name}", SCHEMA) as writer:
        writer.write([pa.array([0], pa.int32())])
        raise KeyboardInterrupt


def test_a_part_is_whole_or_absent(tmp_path: Path) -> None:
    output = Output(tmp_path / "users", "users", {})
    output.begin([PARTS])
    with pytest.raises(KeyboardInterrupt):
        interrupted(output)
    assert list((output.work / PARTS).iterdir()) == []
    assert not output.done(PART)
    file = write(output, 3)
    path = output.work / file.name
    assert output.done(PART)
    assert file == PartFile(name=file.name, rows=3, bytes=path.stat().st_size, sha256=files.sha256(path))
    assert pq.read_metadata(path).num_row_groups == 3


def test_an_output_that_lacks_a_user_is_not_finished(tmp_path: Path) -> None:
    output = Output(tmp_path / "users", "users", {"bundle": "a"})
    output.begin([PARTS])
    name = write(output, 2).name
    with pytest.raises(CorruptError, match="2 users instead of 3"):
        output.finish(3, [name], {})
    assert not output.directory.exists()
    (output.work / name).write_bytes(b"PAR1")
    with pytest.raises(CorruptError, match=f"{PART.name}: cannot be read"):
        output.finish(3, [name], {})
    write(output, 3)
    metadata = output.finish(3, [name], {})
    assert output.finished() == metadata
    assert Output(tmp_path / "users", "users", {"bundle": "b"}).finished() is None
    assert Output(tmp_path / "users", "scores", {"bundle": "a"}).finished() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["users"]


def test_progress_of_another_output_is_kept(tmp_path: Path) -> None:
    output = Output(tmp_path / "users", "users", {"bundle": "a"})
    output.begin([PARTS])
    write(output, 3)
    with pytest.raises(MismatchError, match="made of something else"):
        Output(tmp_path / "users", "users", {"bundle": "b"}).begin([PARTS])
    output.begin([PARTS])
    assert output.done(PART)
    (tmp_path / "users").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        output.finished()


@pytest.mark.parametrize("width", [0, 1, 5])
def test_vectors_of_any_width_come_back(tmp_path: Path, width: int) -> None:
    rows_NX = np.arange(3 * width, dtype=np.float32).reshape(3, width)
    schema = pa.schema([pa.field("vector", floats(width), nullable=False)])
    pq.write_table(pa.table([fixed_lists(rows_NX)], schema=schema), tmp_path / "x.parquet")
    found = pq.read_table(tmp_path / "x.parquet")
    assert found.schema.equals(schema)
    assert found["vector"].to_pylist() == rows_NX.tolist()


def test_the_time_left_is_that_of_the_work_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "INTERVAL_S", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    now_s = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    with Progress("adapt", 1000, 100) as progress:
        now_s += 50.0
        progress.add(100, now_s - 10.0)
        now_s += 10.0
        progress.add(300, now_s - 15.0)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        {"job": "adapt", "users": 200, "of": 1000, "users_per_s": 10.0, "left_s": 80.0},
        {"job": "adapt", "users": 500, "of": 1000, "users_per_s": 20.0, "left_s": 25.0},
        {"job": "adapt", "users": 500, "of": 1000, "users_per_s": 20.0, "left_s": 25.0},
    ]
