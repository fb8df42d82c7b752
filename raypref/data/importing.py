"""`raypref import`: a published dataset becomes rows of a long form, checked and counted."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from raypref import files
from raypref.config_file import apply_override, describe
from raypref.data.published import DATASETS, Published
from raypref.data.published.base import Count, Kind, Row
from raypref.data.published.records import Records
from raypref.data.rows import BadRowError, RowTally, parse_comparison, parse_rating
from raypref.errors import ConfigError, InputError
from raypref.schema import BadRows

MARKER = "source.json"

MAX_BAD_SHARE = 0.05
"""Share of records and rows of no use above which a dataset is not what it is taken for."""


class Imported(BaseModel):
    """What `source.json` says of an imported dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    citation: str
    licence: str
    options: dict[str, Any]
    kind: Kind
    figures: dict[str, int]
    """Rows, users, and what the dataset counts beside."""
    published: dict[str, int]
    """The owners' own, where they differ in nothing that was chosen."""
    bad_records: dict[str, BadRows]
    """Records that gave no row, by choice or as they are, and rows of no use, by kind."""


def dataset_of(name: str, settings: Sequence[str]) -> Published:
    """Return a dataset with its options.

    Args:
        name: of the dataset.
        settings: `option=value`.

    Raises:
        ConfigError: there is no such dataset or option, or a value does not fit.
    """
    kinds = {kind.name: kind for kind in DATASETS}
    if name not in kinds:
        raise ConfigError(f"import: {name} is none of {', '.join(kinds)}.")
    given: dict[str, Any] = {}
    for setting in settings:
        apply_override(given, setting)
    try:
        return kinds[name].model_validate(given)
    except ValidationError as error:
        raise ConfigError(describe(error, f"import {name}")) from error


def import_dataset(dataset: Published, place: str, target: Path) -> Imported:
    """Write a dataset's rows to a folder, all or nothing: one JSONL file, and `source.json`.

    Raises:
        InputError: the files are not there or not that dataset's, hold no row, or too many of no use.
    """
    count = Count()
    parse = parse_comparison if dataset.kind == "comparisons" else parse_rating
    users: set[str] = set()
    bad = RowTally()
    rows = written = 0
    with files.new_directory(target, MARKER) as work:
        with (work / f"{dataset.kind}.jsonl").open("w", encoding="utf-8") as file:
            for row in dataset.rows(Records(place), count):
                rows += 1
                try:
                    user, *_, timestamp, group = parse(row)
                    _require_no_list(row)
                except BadRowError as error:
                    bad.add(str(error), [rows - 1])
                    continue
                users.add(user)
                written += 1
                kept = {name: row[name] for name in row if name not in ("timestamp", "group")}
                kept |= {"user_id": user}
                kept |= {"timestamp": timestamp} if math.isfinite(timestamp) else {}
                kept |= {} if group is None else {"group": group}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
        _require_sound(place, count, rows, bad)
        imported = Imported(
            dataset=dataset.name,
            citation=dataset.citation,
            licence=dataset.licence,
            options=dataset.model_dump(mode="json"),
            kind=dataset.kind,
            figures={dataset.kind: written, "users": len(users), **count.figures()},
            published=dict(dataset.published),
            bad_records={**count.left.kinds, **count.bad.kinds, **bad.kinds},
        )
        files.write_text(work / MARKER, imported.model_dump_json(indent=2) + "\n")
    return imported


def _require_no_list(row: Row) -> None:
    """Refuse a comparison one side of which is the text of a list: its brackets give the answer away."""
    if "chosen" in row and _is_list(row["chosen"]) != _is_list(row["rejected"]):
        raise BadRowError("list_as_text")


def _is_list(text: Any) -> bool:
    if not isinstance(text, str) or not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(found, list) and all(isinstance(part, str) for part in found)


def _require_sound(place: str, count: Count, rows: int, bad: RowTally) -> None:
    if count.records == 0:
        raise InputError(f"{place}: holds no records.")
    left_out = count.bad.count / count.records, bad.count / max(1, rows)
    if max(left_out) > MAX_BAD_SHARE:
        raise InputError(
            f"{place}: {max(left_out):.0%} of it is of no use, so it is not what it was taken for: "
            f"{', '.join(str(tally) for tally in (count.bad, bad) if tally.count)}."
        )
    if rows == bad.count:
        raise InputError(f"{place}: gives no row; {count.records} records were read.")


def table(imported: Imported) -> str:
    """Return the figures beside the published ones, in lines."""
    lines = [("", "here", "published")]
    for name, value in imported.figures.items():
        lines.append((name, str(value), str(imported.published.get(name, "–"))))
    width = [max(len(line[column]) for line in lines) for column in range(3)]
    text = [f"{a:<{width[0]}}  {b:>{width[1]}}  {c:>{width[2]}}" for a, b, c in lines]
    text += [
        f"left out, {kind}: {found.count}, first at {found.first_row}"
        for kind, found in sorted(imported.bad_records.items())
    ]
    return "\n".join(text)
