"""A claim of a paper: measured, judged by conditions that can fail, and written down."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from raypref import files
from raypref.checkpoint import library_versions

Figures = dict[str, Any]
"""What was measured, as JSON has it."""

Size = Literal["quick", "default"]
Verdict = bool | Literal["partly"]

RESULTS = Path(__file__).parents[1] / "results"
REMARKS_FILE = Path(__file__).with_name("claims.yaml")
"""What a person wants to say beside a figure; it decides nothing."""

SIGNS: dict[Verdict, str] = {True: "holds", False: "fails", "partly": "partly"}


@dataclass(frozen=True)
class Bench:
    """Where measurements are made."""

    work: Path
    """What can be made again: tables, fitted models, trials."""
    data: Path | None = None
    """Folder of the real preferences; None leaves out what needs them."""
    results: Path = RESULTS
    """Where `methods.py` wrote what it found, and claims are written."""
    size: Size = "default"
    processes: int = 2


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper and how to find out whether it is so."""

    number: int
    name: str
    sentence: str
    source: str
    measure: Callable[[Bench], Figures]
    conditions: Callable[[Figures], dict[str, bool]]
    """What has to be so, sentence by sentence, from the figures alone."""
    reading: Callable[[Figures], str]
    """The figures that matter, in a sentence or two."""

    @property
    def file(self) -> str:
        """Name of the file that records it."""
        return f"claims_{self.number}_{self.name}.json"

    def record(self, figures: Figures, remarks: Mapping[str, str]) -> dict[str, Any]:
        """Return what is written down of the claim."""
        conditions = self.conditions(figures)
        found: dict[str, Any] = {
            "claim": self.sentence,
            "source": self.source,
            "command": f"python jobs/benchmarks/claims.py {self.name}",
            "holds": verdict(conditions),
            "reading": self.reading(figures),
            "conditions": conditions,
            "figures": figures,
            "versions": library_versions(),
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        }
        return found | ({"remarks": remarks[self.name]} if self.name in remarks else {})


def verdict(conditions: Mapping[str, bool]) -> Verdict:
    """Return whether all conditions hold, none, or some; without a condition nothing was shown."""
    held = sum(conditions.values())
    if held and held < len(conditions):
        return "partly"
    return held > 0


def check(claim: Claim, bench: Bench) -> dict[str, Any]:
    """Measure a claim, judge it and write it down."""
    remarks: dict[str, str] = yaml.safe_load(REMARKS_FILE.read_text()) or {}
    found = claim.record(claim.measure(bench), remarks)
    files.write_text(bench.results / claim.file, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def read(claims: Sequence[Claim], output: Path) -> dict[Claim, dict[str, Any]]:
    """Return what is written down of the claims, in their order; those never checked are left out."""
    paths = {claim: output / claim.file for claim in claims}
    return {claim: json.loads(path.read_text()) for claim, path in paths.items() if path.is_file()}


def text_table(found: Mapping[Claim, Mapping[str, Any]]) -> str:
    """Return the verdicts as text, each with its conditions that fail."""
    lines: list[str] = []
    for claim, record in found.items():
        lines.append(f"{claim.number}  {claim.name:<20}{SIGNS[record['holds']]:<8}{record['reading']}")
        lines += [f"{'':<31}not: {each}" for each, held in record["conditions"].items() if not held]
    return "\n".join(lines)


def markdown_table(found: Mapping[Claim, Mapping[str, Any]]) -> str:
    """Return the verdicts as docs/results.md shows them."""
    lines = ["| claim | source | found | figures |", "|---|---|---|---|"]
    for record in found.values():
        said = " ".join(filter(None, [record["reading"], record.get("remarks")]))
        lines.append(f"| {record['claim']} | {record['source']} | {SIGNS[record['holds']]} | {said} |")
    return "\n".join(lines)
