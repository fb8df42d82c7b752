"""What a sweep leaves behind: the best run, a table of all trials, accuracy over each parameter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raypref import files
from raypref.config import SweepConfig
from raypref.evaluate.canvas import Picture
from raypref.tune.figures import over_parameter
from raypref.tune.ledger import Ledger, Record
from raypref.tune.space import Parameter, changed, word

BEST_FILE, TABLE_FILE, TEXT_FILE, PAGE_FILE = "best.yaml", "trials.parquet", "trials.txt", "sweep.html"


def write_outcome(
    folder: Path,
    raw: Mapping[str, Any],
    sweep: SweepConfig,
    space: Sequence[Parameter],
    ledger: Ledger,
    best: Record,
) -> None:
    """Write best.yaml, trials.parquet, trials.txt, sweep.html and figures/, each whole or not at all."""
    records = ranked(ledger)
    judged = f"unseen/{sweep.setting}/{sweep.shots}"
    header = f"# Trial {best.number} of a sweep, accuracy {best.looks[-1].accuracy:.4f} ({judged}).\n"
    run = yaml.safe_dump(changed(raw, best.values, BEST_FILE), sort_keys=False)
    files.write_text(folder / BEST_FILE, header + run)
    sink = pa.BufferOutputStream()
    pq.write_table(table(records, space), sink, compression="zstd")
    files.write_bytes(folder / TABLE_FILE, sink.getvalue().to_pybytes())
    lines = text_table(records, space)
    files.write_text(folder / TEXT_FILE, f"accuracy: {judged}\n" + "\n".join(lines) + "\n")
    pictures = [over_parameter(parameter, records, best, judged) for parameter in space]
    for picture in pictures:
        files.write_bytes(folder / "figures" / f"{picture.name}.pdf", picture.pdf)
    files.write_text(folder / PAGE_FILE, _page(pictures, records, space, judged))


def ranked(ledger: Ledger) -> list[Record]:
    """Return the records: finished by accuracy, then stopped by how far they came, then the rest."""

    def key(record: Record) -> tuple[int, int, float, int]:
        order = ("finished", "stopped", "diverged", "failed").index(record.status)
        last = record.last
        return order, -(last.rung if last else 0), -(last.accuracy if last else 0.0), record.number

    return sorted(ledger.records.values(), key=key)


def table(records: Sequence[Record], space: Sequence[Parameter]) -> pa.Table:
    """Return a row a trial: what became of it, and its values; lists and mappings as JSON."""
    last = [record.last for record in records]
    columns: dict[str, pa.Array] = {
        "trial": pa.array([record.number for record in records], pa.int64()),
        "status": pa.array([record.status for record in records], pa.string()),
        "accuracy": pa.array([look and look.accuracy for look in last], pa.float64()),
        "nll": pa.array([look and look.nll for look in last], pa.float64()),
        "steps": pa.array([look and look.steps for look in last], pa.int64()),
        "seconds": pa.array([record.seconds for record in records], pa.float64()),
        "message": pa.array([record.message for record in records], pa.string()),
    }
    for parameter in space:
        columns[parameter.path] = _column([record.values[parameter.path] for record in records])
    return pa.table(columns)


def _column(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values}
    if kinds <= {int, float} or kinds in ({bool}, {str}):
        return pa.array(values, pa.float64() if kinds == {int, float} else None)
    return pa.array([json.dumps(value) for value in values], pa.string())


def text_table(records: Sequence[Record], space: Sequence[Parameter]) -> list[str]:
    """Return the trials as aligned lines, a heading first."""
    rows = [["trial", "status", "accuracy", "nll", "steps", "seconds", *(p.path for p in space)]]
    for record in records:
        look = record.last
        figures = [f"{look.accuracy:.4f}", f"{look.nll:.4f}", f"{look.steps}"] if look else ["-"] * 3
        values = [word(record.values[p.path]) for p in space]
        rows.append([f"{record.number}", record.status, *figures, f"{record.seconds:.1f}", *values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]


def _page(
    pictures: Sequence[Picture], records: Sequence[Record], space: Sequence[Parameter], judged: str
) -> str:
    template = jinja2.Template(
        (resources("raypref.tune") / "sweep.html").read_text(),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    heading, *rows = text_table(records, space)
    return template.render(pictures=pictures, judged=judged, heading=heading, rows=rows, trials=len(records))
