"""The table of accuracies, from what `methods.py` recorded: `python jobs/benchmarks/table.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHOTS = (0, 1, 4, 16)
TITLES = {
    "planted-noisy": "planted, noisy labels",
    "planted-extreme": "planted, best over worst",
    "pets": "Pets, new sentences",
    "helpsteer2": "HelpSteer2, new prompts",
    "polis-warm": "Pol.is, warm statements",
    "polis-cold": "Pol.is, cold statements",
    "ukp": "UKPConvArg1 (control)",
}


def main() -> None:
    """Print the table as Markdown, of the populations that were recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="folder of methods_*.json")
    folder: Path = parser.parse_args().results
    print("| data | method | seen | " + " | ".join(f"{shots} shots" for shots in SHOTS) + " |")
    print("|---|---|" + "---|" * (len(SHOTS) + 1))
    for name, title in TITLES.items():
        path = folder / f"methods_{name}.json"
        if not path.is_file():
            continue
        result = json.loads(path.read_text())
        for label, method in result["methods"].items():
            keys = [f"seen/{result['setting']}/all"]
            keys += [f"unseen/{result['setting']}/{shots}" for shots in SHOTS]
            figures = [figure(method.get("cells", {}).get(key)) for key in keys]
            print(f"| {title} | {label} | " + " | ".join(figures) + " |")


def figure(cell: Mapping[str, Any] | None) -> str:
    """Return an accuracy, marked where it differs from the baseline's beyond the interval."""
    if cell is None:
        return "–"
    low, high = cell["difference"]["interval"] if cell["difference"] else (0.0, 0.0)
    mark = " ▲" if low > 0 else " ▼" if high < 0 else ""
    return f"{cell['accuracy']:.3f}{mark}"


if __name__ == "__main__":
    main()
