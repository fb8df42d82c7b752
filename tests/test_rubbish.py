"""What people really give a program: each ends with exit code 2, a useful message, and nothing half-made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raypref.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, main
from raypref.config import RunConfig
from raypref.config_file import load_config
from raypref.data.items import ItemTable, write_items
from raypref.data.planting import write_planted
from raypref.data.prepare import prepare
from raypref.data.tables import Tables
from raypref.methods import BTConfig
from raypref.train.log import METRICS_FILE, read_lines
from raypref.train.session import fit
from raypref.train.trainer import run_directory
from tests.conftest import terminal_signals
from tests.data.corpus import FAKE, Row, comparison, comparisons, write_fake_items, write_jsonl
from tests.embed.embedding_server import DIM, Server, serving

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def tree(folder: Path) -> dict[str, int]:
    """Every file and folder with its time of change; locks aside."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns if path.is_file() else 0
        for path in folder.rglob("*")
        if path.suffix != ".lock"
    }


class Case:
    """A run in a folder of its own, and the commands on it."""

    def __init__(self, folder: Path, capsys: Capture) -> None:
        self.folder, self.run, self.capsys = folder, folder / "run", capsys
        self.raw: dict[str, Any] = {
            "dir": str(self.run),
            "input": {"path": str(folder / "input.jsonl"), "batch_rows": 50},
            "prepare": {"buckets": 4},
            "method": {"type": "bt", "recipe": {"steps": 3}},
            "evaluate": {"shots": [0, 2], "bootstrap": 10},
        }

    @property
    def config(self) -> RunConfig:
        return load_config(self.write(), [])

    def write(self) -> Path:
        (self.folder / "run.yaml").write_text(yaml.safe_dump(self.raw))
        return self.folder / "run.yaml"

    def rows(self, rows: list[Row], items: bool = True) -> None:
        write_jsonl(self.folder / "input.jsonl", rows)
        if items:
            write_fake_items(self.run / "items", self.config.input)

    def file(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        self.raw["input"]["path"] = str(self.folder / name)

    def fails(self, command: str, *said: object, arguments: tuple[str, ...] = ()) -> str:
        """The command is refused with all of `said` in its message, and changes nothing on disk."""
        if command == "embed":
            shutil.rmtree(self.run / "items", ignore_errors=True)
        path = self.write()
        before = tree(self.folder)
        code = main([command, "-c", str(path), *arguments])
        out = self.capsys.readouterr()
        assert code == EXIT_USER_ERROR, out
        assert out.err.startswith("raypref: ")
        assert "Traceback" not in out.err
        for words in said:
            assert str(words) in out.err
        assert tree(self.folder) == before
        return out.err

    def works(self, command: str, *arguments: str) -> str:
        assert main([command, "-c", str(self.write()), *arguments]) == 0
        return self.capsys.readouterr().out


@pytest.fixture
def case(tmp_path: Path, capsys: Capture) -> Case:
    return Case(tmp_path, capsys)


@pytest.fixture
def trained(case: Case) -> Case:
    """A run with items, tables and a bundle."""
    case.rows(comparisons(30))
    prepare(case.config)
    fit(case.config, ItemTable.open(case.run / "items"), Tables.open(case.run / "tables")).save(
        case.run / "bundle"
    )
    return case


def good() -> list[Row]:
    return comparisons(30)


def test_the_case_itself_is_sound(trained: Case) -> None:
    assert "seen users" in trained.works("check")
    assert "report:" in trained.works("eval")
    assert (trained.run / "report" / "report.html").is_file()


# The input


@pytest.mark.parametrize("command", ["prepare", "embed"])
@pytest.mark.parametrize("column", ["user_id", "chosen", "rejected"])
def test_a_missing_column_is_named_with_those_there_are(case: Case, column: str, command: str) -> None:
    case.rows(good())
    case.rows([{key: value for key, value in row.items() if key != column} for row in good()], items=False)
    case.fails(command, "input.jsonl", "columns", column, "user_id, prompt, chosen, rejected")


@pytest.mark.parametrize("command", ["prepare", "embed"])
@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ({"chosen": ""}, "empty_text: 30 (first in row 0)"),
        ({"rejected": " \n\t "}, "empty_text: 30 (first in row 0)"),
        ({"chosen": None}, "missing: 30"),
        ({"chosen": "same", "rejected": "same"}, "same_text: 30"),
        ({"user_id": ""}, "missing: 30"),
        ({"user_id": None}, "missing: 30"),
        ({"user_id": ["a"]}, "malformed_user: 30"),
        ({"weight": -1}, "weight_not_positive: 30"),
        ({"weight": float("nan")}, "not_finite: 30"),
        ({"timestamp": "yesterday"}, "not_a_number: 30"),
        ({"chosen": [{"role": "user"}]}, "malformed_text: 30"),
        ({"chosen": "\ud800"}, "invalid_unicode: 30"),
    ],
)
def test_bad_rows_are_counted_by_kind_with_the_first(case: Case, bad: Row, kind: str, command: str) -> None:
    rows = good()
    case.rows(rows)
    step = len(rows) // 30
    case.rows([row | bad if n % step == 0 else row for n, row in enumerate(rows)], items=False)
    case.fails(command, kind, "30 of 1800 rows", "input.max_bad_share", "Repair them")


def test_a_few_bad_rows_are_left_out_and_told(case: Case) -> None:
    rows = good()
    case.rows(rows)
    case.rows([*rows, comparison(1, "same", "same"), comparison(1, "", "bad")], items=False)
    out = case.works("prepare")
    assert f"left out, same_text: 1, first at row {len(rows)}" in out
    assert f"left out, empty_text: 1, first at row {len(rows) + 1}" in out


@pytest.mark.parametrize("command", ["prepare", "embed"])
@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("input.jsonl", b"", "no rows"),
        ("input.jsonl", b"\n\n  \n", "no rows"),
        ("input.csv", b"", "input.csv"),
        ("input.csv", b"user_id,prompt,chosen,rejected\n", "no rows"),
        ("input.parquet", b"", "input.parquet"),
        ("input.parquet", b"PAR1 this is no Parquet PAR1", "is the file complete?"),
        ("input.jsonl", b'{"user_id": 1, "chosen": "a", "rejec', "line 1 is not JSON"),
        ("input.jsonl", b"[1, 2]\n", "line 1 is a list, not an object"),
        ("input.jsonl.gz", b"not compressed", "is the file complete?"),
        ("input.txt", b"hello", "unknown format; raypref reads .parquet"),
    ],
)
def test_files_without_anything_to_read(case: Case, name: str, data: bytes, said: str, command: str) -> None:
    case.rows(good())
    case.file(name, data)
    case.fails(command, name, said)


@pytest.mark.parametrize("command", ["prepare", "embed"])
def test_an_input_that_is_not_there(case: Case, command: str) -> None:
    case.rows(good())
    case.raw["input"]["path"] = str(case.folder / "nowhere.jsonl")
    case.fails(command, "nowhere.jsonl: no such file or folder; set input.path")
    del case.raw["input"]["path"]
    case.fails(command, "set input.path")
    (case.folder / "empty").mkdir()
    case.raw["input"]["path"] = str(case.folder / "empty")
    case.fails(command, "no file here that raypref reads")


def test_a_line_that_is_not_json_is_named_by_number(case: Case) -> None:
    case.rows(good())
    lines = (case.folder / "input.jsonl").read_text().splitlines()
    lines[123] = lines[123][:-5]
    (case.folder / "input.jsonl").write_text("\n".join(lines))
    case.fails("prepare", "input.jsonl: line 124 is not JSON")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_parquet_file(case: Case, keep: float) -> None:
    case.rows(good())
    pq.write_table(pa.Table.from_pylist(good()), case.folder / "whole.parquet")
    data = (case.folder / "whole.parquet").read_bytes()
    case.file("input.parquet", data[: int(keep * len(data))])
    case.fails("prepare", "input.parquet", "row 0", "is the file complete?")


def test_users_with_one_comparison(case: Case) -> None:
    case.rows([*comparisons(5), *(comparison(f"once {n}", "text 1", "text 2") for n in range(40))])
    case.fails("prepare", "of 45 users have fewer than 2", "prepare.min_train", "max_short_user_share=0.5")
    case.rows([comparison(f"once {n}", "text 1", "text 2") for n in range(40)], items=False)
    case.fails("prepare", "no user is left", "give more comparisons a user")


def test_no_users_at_all(case: Case) -> None:
    case.rows(good())
    case.raw["input"]["max_bad_share"] = 0.99
    case.rows([row | {"user_id": None} for row in good()], items=False)
    case.fails("prepare", "1800 of 1800 rows are bad", "missing: 1800")


def test_texts_that_were_never_embedded(case: Case) -> None:
    case.rows(good())
    case.rows([*good(), comparison(1, "news", "text 3")], items=False)
    case.fails("prepare", "1 rows (first row 1800)", "run `raypref embed` on this input")


def test_preparing_before_embedding(case: Case) -> None:
    case.rows(good(), items=False)
    case.fails("prepare", "items", "no finished table here")


# The configuration


@pytest.mark.parametrize("command", ["embed", "prepare", "train", "eval", "plant", "check"])
def test_an_unknown_key_is_named_with_its_path(case: Case, command: str) -> None:
    case.rows(good())
    case.raw["train"] = {"wrokers": 2}
    case.fails(command, "run.yaml: train.wrokers: unknown key")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "{", "a: b: c", "\x00"])
def test_a_configuration_that_is_none(case: Case, text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    case.fails("check", "bad.yaml", arguments=("-c", str(tmp_path / "bad.yaml")))


# The tables


@pytest.mark.parametrize("command", ["train", "eval", "check"])
def test_items_of_another_embedder(trained: Case, command: str) -> None:
    shutil.rmtree(trained.run / "items")
    other = FAKE.model_copy(update={"revision": "1"})
    write_fake_items(trained.run / "items", trained.config.input, other)
    said = trained.fails(command, "items", "made by another embedder", "revision")
    assert "Embed with the expected one" in said


@pytest.mark.parametrize("command", ["train", "eval", "check"])
def test_items_of_another_width(trained: Case, command: str) -> None:
    shutil.rmtree(trained.run / "items")
    write_fake_items(trained.run / "items", trained.config.input, FAKE.model_copy(update={"dim": 5}))
    trained.fails(command, "dim 5 instead of 4")


@pytest.mark.parametrize("command", ["eval", "check"])
def test_a_bundle_of_another_embedder(trained: Case, command: str) -> None:
    shutil.rmtree(trained.run / "tables")
    shutil.rmtree(trained.run / "items")
    other = FAKE.model_copy(update={"model": "other"})
    write_fake_items(trained.run / "items", trained.config.input, other)
    prepare(trained.config)
    trained.fails(command, "model 'other' instead of 'fake'", "vectors of different embedders never mix")


@pytest.mark.parametrize("command", ["train", "eval", "check"])
@pytest.mark.parametrize(
    "name",
    ["users.parquet", "metadata.json", "comparisons/bucket-00002.parquet", "../items/part-000000.parquet"],
)
@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_a_truncated_table(trained: Case, name: str, keep: float, command: str) -> None:
    path = (trained.run / "tables" / name).resolve()
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    trained.fails(command, path)


@pytest.mark.parametrize("command", ["train", "eval", "check"])
def test_a_missing_bucket(trained: Case, command: str) -> None:
    (trained.run / "tables" / "comparisons" / "bucket-00001.parquet").unlink()
    trained.fails(command, "bucket-00001.parquet", "prepare the tables again")


def test_a_changed_byte_in_the_items(trained: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(trained.folder.parent / f"{trained.folder.name}-cache"))
    path = trained.run / "items" / "part-000000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    trained.fails("eval", path, "sha256 differs")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_fewer_items_than_the_tables_name(trained: Case, command: str) -> None:
    rows = ItemTable.open(trained.run / "items").gather(np.arange(3))
    shutil.rmtree(trained.run / "items")
    write_items(trained.run / "items", FAKE, [([bytes([n]) * 16 for n in range(3)], rows)])
    trained.fails(command, "tables: prepared with 100 items", "items has 3", "prepare again")


def test_no_seen_users(case: Case) -> None:
    case.raw["prepare"]["unseen_share"] = 0.999
    case.rows(good())
    prepare(case.config)
    assert Tables.open(case.run / "tables").metadata.seen_users == 0
    case.fails("train", "no seen users to train on; lower prepare.unseen_share")


def test_more_workers_than_buckets(trained: Case) -> None:
    trained.raw["train"] = {"workers": 5}
    trained.fails("train", "train.workers is 5", "4 buckets", "prepare them with more buckets")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_nothing_prepared_yet(case: Case, command: str) -> None:
    case.rows(good())
    case.fails(command, "tables: no finished table here")


# The bundle


def test_evaluating_what_was_never_trained(trained: Case) -> None:
    shutil.rmtree(trained.run / "bundle")
    trained.fails("eval", "bundle: no bundle here")
    trained.fails("eval", "elsewhere: no bundle here", arguments=(str(trained.folder / "elsewhere"),))


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json", "users.parquet", "manifest.json"])
@pytest.mark.parametrize("command", ["eval", "check"])
def test_a_flipped_byte_in_the_bundle(trained: Case, name: str, command: str) -> None:
    path = trained.run / "bundle" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    trained.fails(command, path, "Restore it from a copy")


def test_a_bundle_trained_on_other_tables(trained: Case) -> None:
    trained.raw["prepare"]["seed"] = 1
    prepare(trained.config)
    trained.fails("eval", "bundle: trained on other comparisons", "train it on these tables")


def test_two_bundles_of_one_name(trained: Case) -> None:
    again = trained.folder / "other" / "bundle"
    shutil.copytree(trained.run / "bundle", again)
    trained.fails("eval", "a second bundle called bt", arguments=(str(trained.run / "bundle"), str(again)))


def test_a_report_never_takes_the_place_of_something_else(trained: Case) -> None:
    (trained.folder / "thesis").mkdir()
    (trained.folder / "thesis" / "chapter").write_text("years of work")
    trained.raw["report"] = str(trained.folder / "thesis")
    trained.fails("eval", "thesis: would be replaced", "Name another folder")


@pytest.mark.parametrize("command", ["prepare", "plant"])
def test_tables_never_take_the_place_of_the_input(case: Case, command: str) -> None:
    case.rows(good())
    case.raw["planted"] = {
        "dim": 4,
        "train_prompts": 9,
        "test_prompts": 9,
        "seen_users": 2,
        "unseen_users": 1,
    }
    case.raw["items"] = str(case.run / "items") if command == "prepare" else str(case.folder)
    case.raw["tables"] = str(case.folder / "input.jsonl")
    case.fails(command, "would be replaced")


def test_the_demo_never_takes_the_place_of_something_else(case: Case, capsys: Capture) -> None:
    case.rows(good())
    before = tree(case.folder)
    assert main(["demo", "--dir", str(case.folder)]) == EXIT_USER_ERROR
    assert "would be replaced" in capsys.readouterr().err
    assert tree(case.folder) == before


# Engines


@pytest.fixture
def server(ray_cluster: None) -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fault", "said"),
    [("nan", "not finite"), ("dim", "embed.dim is 8"), ("json", "no OpenAI embeddings"), ("401", "API key")],
)
def test_an_engine_that_answers_rubbish(case: Case, server: Server, fault: str, said: str) -> None:
    case.rows(good(), items=False)
    case.run.mkdir()
    case.raw["embed"] = {
        "engine": "http", "model": "m", "url": server.url, "dim": DIM, "retries": 0, "part_rows": 1000,
        "batch_size": 1000,
    }  # fmt: skip
    server.faults = [fault]
    case.fails("embed", said)
    case.works("embed")
    assert len(ItemTable.open(case.run / "items")) > 20


@pytest.mark.ray
def test_an_engine_that_is_not_there(case: Case, ray_cluster: None) -> None:
    case.rows(good(), items=False)
    case.run.mkdir()
    case.raw["embed"] = {
        "engine": "http",
        "model": "m",
        "url": "http://127.0.0.1:9/v1",
        "dim": 8,
        "retries": 0,
    }
    case.fails("embed", "http://127.0.0.1:9/v1", "Check that the server runs")


# Ctrl-C


def interrupted(config: Path, command: str, now: Callable[[], bool], seconds: float = 200.0) -> str:
    """Press Ctrl-C on a command, as a terminal does, as soon as `now`; return what it said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    with subprocess.Popen(
        [sys.executable, "-m", "raypref", command, "-c", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=terminal_signals,
    ) as process:
        try:
            end = time.monotonic() + seconds
            while not now():
                assert process.poll() is None, "it ended before Ctrl-C"
                assert time.monotonic() < end
                time.sleep(0.002)
            os.killpg(process.pid, signal.SIGINT)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == EXIT_INTERRUPTED, said
    return said


def test_ctrl_c_while_preparing(case: Case) -> None:
    case.raw["input"]["batch_rows"] = 2000
    case.rows(comparisons(30))
    rows = (case.folder / "input.jsonl").read_text()
    (case.folder / "input.jsonl").write_text(rows * 60)
    before = tree(case.folder)
    said = interrupted(
        case.write(),
        "prepare",
        lambda: any(case.run.glob(".tables.spill.*/*")) or any(case.run.glob("tables")),
    )
    assert "interrupted; nothing half-written was left" in said
    assert "Traceback" not in said
    assert tree(case.folder).keys() - before.keys() <= {"run.yaml"}


@pytest.mark.parametrize("table", ["items", "tables"])
def test_ctrl_c_while_planting(case: Case, table: str) -> None:
    case.raw["planted"] = {"dim": 64, "seen_users": 20_000, "unseen_users": 1000}
    case.run.mkdir()
    said = interrupted(case.write(), "plant", lambda: any(case.run.glob(f".{table}.*/*")))
    assert "Traceback" not in said
    left = {path.name for path in case.run.iterdir()}
    assert left == (set() if table == "items" else {"items"})
    if table == "tables":
        assert len(ItemTable.open(case.run / "items")) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_while_training(case: Case) -> None:
    case.raw["planted"] = {
        "dim": 32, "train_prompts": 100, "test_prompts": 20, "seen_users": 60, "unseen_users": 5,
    }  # fmt: skip
    case.raw["method"] = BTConfig(
        recipe=BTConfig().recipe.model_copy(update={"steps": 1_000_000})
    ).model_dump()
    case.raw["train"] = {"log_every": 1, "checkpoint_every": 100, "patience": 0}
    write_planted(case.config.planted, case.run / "items", case.run / "tables", buckets=4)
    directory = run_directory(case.config, Tables.open(case.run / "tables"))
    said = interrupted(case.write(), "train", lambda: len(read_lines(directory / METRICS_FILE)) > 150)
    assert "Traceback" not in said
    assert "interrupted" in said
    assert {path.name for path in case.run.iterdir()} == {"items", "tables", "train"}
    assert not list(case.run.rglob(".bundle*"))
    assert json.loads(next(directory.glob("step-*/state.json")).read_text())["step"] % 100 == 0
