"""The report: `report.json` has every number, `report.html` every figure, and each stands alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from raypref import files
from raypref.errors import InputError
from raypref.evaluate import figures
from raypref.evaluate.canvas import Look, Picture, looks
from raypref.evaluate.landscape import PreferenceMap
from raypref.evaluate.protocol import COHORTS, SETTINGS
from raypref.evaluate.result import Cell, Collapse, Difference, Evaluation, Section, Setting, compare
from raypref.metrics import Estimate

REPORT_FILE = "report.json"

FOCUS_SHOTS = 8
"""Calibration and uncertainty are shown at the number of shots nearest to this."""


class ReportMeta(Section):
    """What the report says about itself."""

    title: str
    data: str = Field(description="The population, in a sentence.")
    baseline: str | None = Field(None, description="Name of the evaluation that the others are compared to.")
    versions: dict[str, str] = Field(default_factory=dict, description="Of what made the numbers.")


@dataclass(frozen=True)
class Chapter:
    """A heading, what to look for, and the figures that show it."""

    title: str
    text: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Entry:
    """One method in one cell of a table."""

    cell: Cell
    difference: Difference | None
    best: bool

    @property
    def verdict(self) -> str:
        """Whether the difference to the baseline has a sign: better, worse, or open where there is none."""
        if self.difference is None:
            return ""
        accuracy = self.difference.accuracy
        return "better" if accuracy.low > 0 else "worse" if accuracy.high < 0 else "open"


@dataclass(frozen=True)
class Table:
    """Accuracies in one setting: a row a method, a column a cell."""

    setting: Setting
    columns: list[str]
    rows: dict[str, list[Entry | None]]


@dataclass(frozen=True)
class Diagnosis:
    """What the vectors of one method's users say of one cohort, where most is known of them."""

    users: str
    gains: dict[Setting, Estimate | None]
    collapse: Collapse | None


def write_report(
    directory: Path,
    evaluations: Mapping[str, Evaluation],
    maps: Mapping[str, PreferenceMap | None],
    meta: ReportMeta,
) -> None:
    """Write the report as a new directory, whole or not at all.

    Beside the two files it holds `figures/`, the same figures as PDF.

    Raises:
        InputError: there is nothing to report, or no evaluation of the baseline.
        MismatchError: the evaluations were made on different tables or draws.
    """
    if not evaluations:
        raise InputError("no evaluations to report; evaluate a bundle first.")
    differences = [] if meta.baseline is None else compare(evaluations, meta.baseline)
    chapters = _chapters(evaluations, maps, looks(list(evaluations), meta.baseline))
    pictures = [picture for chapter in chapters for picture in chapter.pictures]
    content = {
        "meta": meta.model_dump(mode="json"),
        "evaluations": {name: found.model_dump(mode="json") for name, found in evaluations.items()},
        "differences": [difference.model_dump(mode="json") for difference in differences],
        "maps": {name: found and found.model_dump(mode="json") for name, found in maps.items()},
        "figures": [{"name": picture.name, "alt": picture.alt} for picture in pictures],
    }
    page = _page(meta, evaluations, differences, chapters, content)
    with files.new_directory(directory, REPORT_FILE) as work:
        files.write_text(work / REPORT_FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")
        files.write_text(work / "report.html", page)
        for picture in pictures:
            files.write_bytes(work / "figures" / f"{picture.name}.pdf", picture.pdf)


def _page(
    meta: ReportMeta,
    evaluations: Mapping[str, Evaluation],
    differences: Sequence[Difference],
    chapters: Sequence[Chapter],
    content: dict[str, Any],
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = [table for setting in SETTINGS if (table := _table(evaluations, differences, setting)).columns]
    # `</` would end the script element that carries the numbers.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return environment.get_template("report.html").render(
        meta=meta,
        evaluations=evaluations,
        first=next(iter(evaluations.values())),
        tables=tables,
        diagnoses={name: _diagnoses(found) for name, found in evaluations.items()},
        chapters=chapters,
        focus={setting: _focus(evaluations, setting) for setting in SETTINGS},
        data=data,
    )


def _table(
    evaluations: Mapping[str, Evaluation], differences: Sequence[Difference], setting: Setting
) -> Table:
    delta = {(difference.method, difference.cell): difference for difference in differences}
    first: dict[str, Cell] = {}
    for found in evaluations.values():
        first |= {cell.key: cell for cell in found.cells if cell.setting == setting}
    keys = sorted(first, key=lambda key: -1 if first[key].shots is None else first[key].shots or 0)
    rows: dict[str, list[Entry | None]] = {name: [] for name in evaluations}
    for key in keys:
        column = {
            name: next((cell for cell in found.cells if cell.key == key), None)
            for name, found in evaluations.items()
        }
        best = max(cell.accuracy_per_user.mean for cell in column.values() if cell)
        for name, cell in column.items():
            entry = cell and Entry(cell, delta.get((name, key)), cell.accuracy_per_user.mean == best)
            rows[name].append(entry)
    return Table(setting, [_heading(first[key]) for key in keys], rows)


def _diagnoses(evaluation: Evaluation) -> list[Diagnosis]:
    found: list[Diagnosis] = []
    for cohort in COHORTS:
        cells = [cell for cell in evaluation.cells if cell.cohort == cohort]
        if cells:
            most = max((cell.shots for cell in cells), key=lambda shots: shots or 0)
            deepest: dict[Setting, Cell] = {cell.setting: cell for cell in cells if cell.shots == most}
            first = next(iter(deepest.values()))
            gains: dict[Setting, Estimate | None] = {
                setting: cell.latent_gain for setting, cell in deepest.items()
            }
            found.append(Diagnosis(_heading(first), gains, first.collapse))
    return found


def _heading(cell: Cell) -> str:
    return "seen users" if cell.shots is None else f"unseen, {cell.shots}"


def _curve(evaluation: Evaluation, setting: Setting) -> list[Cell]:
    cells = [c for c in evaluation.cells if c.cohort == "unseen" and c.setting == setting]
    return sorted(cells, key=lambda cell: cell.shots or 0)


def _focus(evaluations: Mapping[str, Evaluation], setting: Setting) -> dict[str, Cell]:
    """Return each method's cell of unseen users nearest to FOCUS_SHOTS."""
    curves = {name: _curve(found, setting) for name, found in evaluations.items()}
    return {
        name: min(cells, key=lambda cell: abs((cell.shots or 0) - FOCUS_SHOTS))
        for name, cells in curves.items()
        if cells
    }


def _chapters(
    evaluations: Mapping[str, Evaluation],
    maps: Mapping[str, PreferenceMap | None],
    style: Mapping[str, Look],
) -> list[Chapter]:
    curves: dict[Setting, dict[str, list[Cell]]] = {
        setting: {name: cells for name, found in evaluations.items() if (cells := _curve(found, setting))}
        for setting in SETTINGS
    }
    shown = [cell.accuracy_per_user for part in curves.values() for cells in part.values() for cell in cells]
    few: list[Picture] = []
    calibration: list[Picture] = []
    doubt: list[Picture] = []
    for setting, cells_by_method in curves.items():
        if not cells_by_method:
            continue
        limits = (min(e.low for e in shown) - 0.01, max(e.high for e in shown) + 0.01)
        title = f"Unseen users, {setting} items"
        few.append(figures.few_shots(f"few-shots-{setting}", title, cells_by_method, style, limits))
        cells = _focus(evaluations, setting)
        title += f", {next(iter(cells.values())).shots} comparisons"
        calibration.append(figures.reliability(f"reliability-{setting}", title, cells, style))
        doubt.append(figures.selective(f"selective-{setting}", title, cells, style))
        doubt.append(figures.by_uncertainty(f"by-pair-{setting}", title, cells, style, of_users=False))
        doubt.append(figures.by_uncertainty(f"by-user-{setting}", title, cells, style, of_users=True))
    places = {name: found for name, found in maps.items() if found is not None}
    # A method may have any name; a figure's name is an id of the page and a file.
    slugs = [f"map-{i}-" + re.sub(r"[^A-Za-z0-9]+", "-", name) for i, name in enumerate(places, 1)]
    drawn = [figures.preference_map(slug, *place) for slug, place in zip(slugs, places.items(), strict=True)]
    chapters = [
        Chapter(
            "What a few comparisons are worth",
            "Accuracy for users whom training never met, after they gave so many comparisons. Bands are the "
            "bootstrap interval over users.",
            few,
        ),
        Chapter(
            "Calibration",
            "Of the comparisons on which a model is 80 % confident it should be right on 80 %: on the dotted "
            "line. A marker’s area is the share of the comparisons; bins with less than 1 % are not drawn.",
            calibration,
        ),
        Chapter(
            "What the model knows that it does not know",
            "First accuracy on the most confident share of the comparisons. Then accuracy by the model’s "
            "uncertainty about the pair, the standard deviation of the reward difference, and by its mean "
            "over a user’s pairs. A method without variance is ranked by 1 − confidence.",
            doubt,
        ),
        Chapter(
            "Users and bases in the preference space",
            "Users placed by all their training comparisons, with one standard deviation of the position for "
            "some of them; numbered diamonds are the bases. Two principal axes of users and bases together.",
            drawn,
        ),
    ]
    return [chapter for chapter in chapters if chapter.pictures]
