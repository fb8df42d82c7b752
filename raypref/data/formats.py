"""Readers of files: each yields a file's rows as raw columns, in constant memory."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from raypref.errors import InputError
from raypref.schema import COMPARISON_COLUMNS, OPTIONAL_COLUMNS, RATING_COLUMNS

COLUMNS = tuple(dict.fromkeys((*COMPARISON_COLUMNS, *RATING_COLUMNS, *OPTIONAL_COLUMNS)))
"""Every column that an input may have for us; all others are left unread."""

JSON = (".json", ".json.gz")
"""Read as JSON lines."""

HUGGING_FACE_FILES = ("dataset_dict.json", "state.json")
CSV_BLOCK_BYTES = 16 * 2**20

RawColumns = dict[str, list[Any]]
Reader = Callable[[Path, int, bool], Iterator[RawColumns]]


def read_raw(path: Path, batch_rows: int, all_columns: bool = False) -> Iterator[tuple[str, RawColumns]]:
    """Yield (where, columns) batch by batch from a file, a folder of files or a dataset on disk.

    A batch holds the columns of `COLUMNS` that its file has, or all that it has, all of them in equal length.

    Raises:
        InputError: nothing readable stands at `path`, or a file is damaged; with the file and the row.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; set input.path.")
    if path.is_dir() and any((path / name).is_file() for name in HUGGING_FACE_FILES):
        for columns in _hugging_face(path, batch_rows, all_columns):
            yield str(path), columns
        return
    for file in readable(path):
        reader = _reader(file)
        assert reader is not None
        for columns in reader(file, batch_rows, all_columns):
            yield str(file), columns


def readable(path: Path) -> list[Path]:
    """Return the files that `read_raw` reads at a path, in order.

    Raises:
        InputError: there is none.
    """
    if path.is_file():
        if _reader(path) is None:
            raise InputError(f"{path}: unknown format; raypref reads {', '.join(READERS)}.")
        return [path]
    hidden = (".", "_")
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and _reader(file) is not None
        and not any(part.startswith(hidden) for part in file.relative_to(path).parts)
    ]
    # Beside files of another format JSON describes them: source.json, dataset_infos.json.
    found = [file for file in found if not file.name.lower().endswith(JSON)] or found
    if not found:
        raise InputError(f"{path}: no file here that raypref reads ({', '.join(READERS)}).")
    return found


def _reader(file: Path) -> Reader | None:
    return next((read for suffix, read in READERS.items() if file.name.lower().endswith(suffix)), None)


def _wanted(names: Iterable[str], all_columns: bool) -> list[str]:
    return [name for name in names if all_columns or name in COLUMNS]


def _damaged(file: Path, row: int, error: Exception) -> InputError:
    return InputError(f"{file}: cannot be read at or after row {row} ({error}); is the file complete?")


def _parquet(file: Path, batch_rows: int, all_columns: bool) -> Iterator[RawColumns]:
    row = 0
    try:
        with pq.ParquetFile(file) as parquet:
            names = _wanted(parquet.schema_arrow.names, all_columns)
            if parquet.metadata.num_rows == 0:
                yield {name: [] for name in names}
            for batch in parquet.iter_batches(batch_rows, columns=names):
                yield _from_arrow(batch)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, row, error) from error


def _jsonl(file: Path, batch_rows: int, all_columns: bool) -> Iterator[RawColumns]:
    lines_read = 0
    try:
        with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as lines:
            while chunk := list(itertools.islice(lines, batch_rows)):
                numbered = enumerate(chunk, start=lines_read + 1)
                records = [_record(file, line, text) for line, text in numbered if text.strip()]
                names = _wanted(dict.fromkeys(name for record in records for name in record), all_columns)
                if records:
                    yield {name: [record.get(name) for record in records] for name in names}
                lines_read += len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file, lines_read, error) from error


def _record(file: Path, line: int, text: bytes) -> dict[str, Any]:
    if line == 1 and file.name.lower().endswith(JSON) and text.lstrip().startswith(b"["):
        raise InputError(
            f"{file}: is one list of records; give a record a line: jq -c '.[]' {file.name} > records.jsonl"
        )
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: line {line} is not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise InputError(f"{file}: line {line} is a {type(record).__name__}, not an object with columns.")
    return record


def _csv(file: Path, batch_rows: int, all_columns: bool) -> Iterator[RawColumns]:
    row = 0
    try:
        named = _csv_names(file) if all_columns else COLUMNS
        options = pacsv.ConvertOptions(
            column_types=dict.fromkeys(named, pa.string()), strings_can_be_null=False
        )
        with (
            pa.input_stream(str(file), compression="detect") as stream,
            pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(block_size=CSV_BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=options,
            ) as batches,
        ):
            names = _wanted(batches.schema.names, all_columns)
            for batch in batches:
                for start in range(0, max(batch.num_rows, 1), batch_rows):
                    yield _from_arrow(batch.select(names).slice(start, batch_rows))
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, row, error) from error


def _csv_names(file: Path) -> list[str]:
    with (
        pa.input_stream(str(file), compression="detect") as stream,
        pacsv.open_csv(stream, parse_options=pacsv.ParseOptions(newlines_in_values=True)) as batches,
    ):
        return batches.schema.names


def _hugging_face(path: Path, batch_rows: int, all_columns: bool) -> Iterator[RawColumns]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{path}: this is a Hugging Face dataset; install its reader with `pip install raypref[hf]`."
        ) from error
    row = 0
    try:
        loaded = datasets.load_from_disk(str(path))
        parts = loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded]
        for part in parts:
            names = _wanted(part.column_names, all_columns)
            if len(part) == 0:
                yield {name: [] for name in names}
            for table in part.select_columns(names).with_format("arrow").iter(batch_rows):
                assert isinstance(table, pa.Table)
                yield _from_arrow(table)
                row += len(table)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _damaged(path, row, error) from error


def _from_arrow(batch: pa.RecordBatch | pa.Table) -> RawColumns:
    return {name: batch.column(name).to_pylist() for name in batch.schema.names}


READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    **dict.fromkeys(JSON, _jsonl),
    ".csv": _csv,
    ".csv.gz": _csv,
}
