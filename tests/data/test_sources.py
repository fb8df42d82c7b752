from __future__ import annotations

import gzip
import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypref.config import InputConfig
from raypref.data.rows import ComparisonRows, RatingRows
from raypref.data.sources import Source, iter_texts, render
from raypref.errors import InputError
from tests.data.corpus import Row, comparison, write_jsonl

ROWS = [
    comparison(user, f"{user} good, {{x}}", 'bad\n"quoted"', timestamp=1.5 * user, weight=2.0)
    for user in range(7)
]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def read(path: Path, **options: Any) -> tuple[Source, list[ComparisonRows | RatingRows]]:
    source = Source(InputConfig(path=path, **options))
    return source, list(source.batches())


def write_parquet(path: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_csv(path: Path, rows: list[Row]) -> Path:
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)
    return path


def write_jsonl_gz(path: Path, rows: list[Row]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def write_csv_gz(path: Path, rows: list[Row]) -> Path:
    path.write_bytes(gzip.compress(write_csv(path.with_suffix(".plain"), rows).read_bytes()))
    return path


def write_hugging_face(path: Path, rows: list[Row]) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


def write_folder(path: Path, rows: list[Row]) -> Path:
    path.mkdir()
    write_parquet(path / "a.parquet", rows[:3])
    write_jsonl(path / "b.jsonl", rows[3:])
    (path / "README.md").write_text("not data")
    (path / ".hidden.jsonl").write_text("not read")
    (path / "source.json").write_text('{"dataset": "described, not read"}\n')
    return path


WRITERS = {
    "data.parquet": write_parquet,
    "data.jsonl": write_jsonl,
    "data.jsonl.gz": write_jsonl_gz,
    "data.csv": write_csv,
    "data.csv.gz": write_csv_gz,
    "dataset": write_hugging_face,
    "folder": write_folder,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("batch_rows", [2, 100])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, batch_rows: int) -> None:
    source, batches = read(WRITERS[name](tmp_path / name, ROWS), batch_rows=batch_rows)
    assert source.rows == 7
    assert not source.bad.kinds
    assert max(len(batch.row) for batch in batches) <= batch_rows
    assert all(isinstance(batch, ComparisonRows) for batch in batches)
    assert [row for batch in batches for row in batch.row] == list(range(7))
    assert [user for batch in batches for user in batch.user_id] == [str(row["user_id"]) for row in ROWS]
    assert [item for batch in batches for item in batch.items()] == [
        (row["prompt"], row[side]) for row in ROWS for side in ("chosen", "rejected")
    ]
    assert [stamp for batch in batches for stamp in batch.timestamp] == [row["timestamp"] for row in ROWS]


def test_a_dataset_dict_is_read_split_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": datasets.Dataset.from_list(ROWS[:4]), "test": datasets.Dataset.from_list(ROWS[4:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    source, batches = read(tmp_path / "both")
    assert source.rows == 7
    assert [row for batch in batches for row in batch.row] == list(range(7))


def test_a_dataset_without_its_reader_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hugging_face(tmp_path / "dataset", ROWS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install raypref\[hf\]"):
        read(tmp_path / "dataset")


def test_a_damaged_dataset_is_an_input_error(tmp_path: Path) -> None:
    path = write_hugging_face(tmp_path / "dataset", ROWS)
    (data,) = path.glob("*.arrow")
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(InputError, match="dataset: cannot be read"):
        read(path)


def test_chat_messages_survive_parquet_and_jsonl_alike(tmp_path: Path) -> None:
    rows = [comparison(1, CHAT[1:], [{"role": "assistant", "content": "no", "name": "x"}], prompt=CHAT[:1])]
    expected = [(CHAT[:1], CHAT[1:]), (CHAT[:1], rows[0]["rejected"])]
    for name in ("data.parquet", "data.jsonl"):
        (batch,) = read(WRITERS[name](tmp_path / name, rows))[1]
        assert list(batch.items()) == expected


def test_a_missing_prompt_is_implicit(tmp_path: Path) -> None:
    rows = [{"user_id": 1, "chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "no"}]}]
    (batch,) = read(write_jsonl(tmp_path / "data.jsonl", rows))[1]
    assert batch.prompt == [""]


def test_optional_columns_have_defaults_row_by_row(tmp_path: Path) -> None:
    rows = [comparison(1), comparison(2, timestamp=3, weight=0.5), comparison(3, timestamp=None, weight=None)]
    (batch,) = read(write_jsonl(tmp_path / "data.jsonl", rows))[1]
    assert isinstance(batch, ComparisonRows)
    assert batch.weight == [1.0, 0.5, 1.0]
    assert [math.isnan(stamp) for stamp in batch.timestamp] == [True, False, True]


def test_dates_become_seconds(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([comparison(1)])
    table = table.append_column("timestamp", pa.array([1_000_000], pa.timestamp("us")))
    pq.write_table(table, tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet")[1][0].timestamp == [1.0]


BAD = {
    "missing": [comparison(None), comparison(""), comparison(1, None), comparison(1, prompt=None)],
    "empty_text": [comparison(1, ""), comparison(1, "a", " \n"), comparison(1, [])],
    "malformed_text": [comparison(1, 5), comparison(1, [{"role": "user"}]), comparison(1, {"content": "x"})],
    "malformed_user": [comparison([1]), comparison(1.5)],
    "same_text": [comparison(1, "a", "a"), comparison(1, CHAT, [dict(reversed(m.items())) for m in CHAT])],
    "weight_not_positive": [comparison(1, weight=0), comparison(1, weight=-1)],
    "not_finite": [
        comparison(1, weight=math.nan),
        comparison(1, timestamp=math.inf),
        comparison(1, weight=10**400),
    ],
    "not_a_number": [comparison(1, weight="heavy"), comparison(1, timestamp=[1])],
    "invalid_unicode": [comparison(1, "\ud800"), comparison("\ud800")],
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_counted_by_kind_with_their_first_row(tmp_path: Path, kind: str) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [comparison(0), *BAD[kind], comparison(9)])
    source, batches = read(path, max_bad_share=0.9, batch_rows=2)
    assert {name: bad.model_dump() for name, bad in source.bad.kinds.items()} == {
        kind: {"count": len(BAD[kind]), "first_row": 1}
    }
    assert [user for batch in batches for user in batch.user_id] == ["0", "9"]
    with pytest.raises(InputError, match=rf"{kind}: {len(BAD[kind])} \(first in row 1\)"):
        read(path, max_bad_share=0.1)


def test_bad_ratings_are_counted(tmp_path: Path) -> None:
    good = {"user_id": "a", "prompt": "", "response": "x", "rating": 1}
    rows = [good, {**good, "rating": None}, {**good, "rating": math.nan}, {**good, "response": ""}]
    source, (batch,) = read(write_jsonl(tmp_path / "data.jsonl", rows), max_bad_share=0.9)
    assert {kind: bad.count for kind, bad in source.bad.kinds.items()} == {
        "missing": 1,
        "not_finite": 1,
        "empty_text": 1,
    }
    assert isinstance(batch, RatingRows)
    assert batch.rating == [1.0]


def test_csv_numbers_that_are_none_are_bad_rows_and_ids_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("user_id,prompt,response,rating\n007,p,a,4\n007,p,b,many\n007,p,c,\n")
    source, (batch,) = read(path, max_bad_share=0.9)
    assert batch.user_id == ["007"]
    assert {kind: bad.first_row for kind, bad in source.bad.kinds.items()} == {
        "not_a_number": 1,
        "missing": 2,
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["user_id", "prompt", "chosen"], "neither the columns of comparisons"),
        (["user_id", "prompt", "chosen", "rejected", "response", "rating"], "set input.kind"),
        (["title"], "of these it has none"),
    ],
)
def test_the_kind_must_be_clear(tmp_path: Path, columns: list[str], message: str) -> None:
    path = write_parquet(tmp_path / "data.parquet", [dict.fromkeys(columns, "x")])
    with pytest.raises(InputError, match=message):
        read(path)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"user_id": 1, "response": "x", "rating": 1}])
    with pytest.raises(InputError, match="missing column prompt"):
        read(path, kind="ratings")


def test_a_later_file_of_another_form_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", [{"user_id": 1, "prompt": "", "response": "x", "rating": 1}])
    with pytest.raises(InputError, match=r"b\.jsonl: missing columns chosen, rejected"):
        read(tmp_path)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set input\.path"):
        Source(InputConfig())
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no file here"):
        read(tmp_path)
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(InputError, match="unknown format"):
        read(tmp_path / "data.txt")


@pytest.mark.parametrize("name", ["empty.jsonl", "blank.jsonl", "empty.parquet", "empty.csv"])
def test_an_empty_input_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), path)
    else:
        header = ",".join(ROWS[0]) + "\n" if name.endswith(".csv") else "\n" * name.startswith("blank")
        path.write_text(header)
    with pytest.raises(InputError, match="has no rows"):
        read(path)


@pytest.mark.parametrize("name", ["data.parquet", "data.jsonl.gz", "data.csv.gz"])
def test_a_truncated_file_is_an_input_error(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=f"{name}: .*row 0"):
        read(path)


def test_a_damaged_page_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS * 100), path, row_group_size=70, compression="zstd")
    start = pq.ParquetFile(path).metadata.row_group(5).column(2).data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 20 : start + 60] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match="at or after row 350"):
        read(path, batch_rows=70)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", ROWS)
    path.write_text(path.read_text() + '{"user_id": ')
    with pytest.raises(InputError, match="line 8 is not JSON"):
        read(path, batch_rows=2)
    path.write_text("[1, 2]\n")
    with pytest.raises(InputError, match="line 1 is a list"):
        read(path)


def test_texts_come_once_in_order_of_appearance(tmp_path: Path) -> None:
    rows = [comparison(1, "a", "b"), comparison(2, "b", "c"), comparison(3, "c", "a", prompt="other")]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    assert list(iter_texts(InputConfig(path=path, batch_rows=1))) == [
        ("why?", "a"),
        ("why?", "b"),
        ("why?", "c"),
        ("other", "c"),
        ("other", "a"),
    ]


def test_rendering_flattens_messages_or_keeps_them_for_chat() -> None:
    assert render("{prompt}|{response}", "{response}", "{prompt} {0}") == "{response}|{prompt} {0}"
    assert render("{prompt}|{response}", CHAT[:1], CHAT[1:]) == "hi|hello"
    assert render("{response}", "unused", CHAT) == "user: hi\n\nassistant: hello"
    chat = '[{"content":"hi","role":"user"},{"content":"hello","role":"assistant"}]'
    assert (
        render("chat", "hi", "hello") == render("chat", CHAT[:1], "hello") == render("chat", "", CHAT) == chat
    )


@given(st.text(), st.text())
def test_rendering_is_injective_for_chat(prompt: str, response: str) -> None:
    messages = json.loads(render("chat", prompt, response))
    assert [m["content"] for m in messages] == [text for text in (prompt, response) if text]
