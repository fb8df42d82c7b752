"""The README's table of accuracies, from what `accuracy.py` recorded: `python jobs/benchmarks/table.py`."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHOTS = (0, 1, 4, 16, 32)
TITLES = {
    "planted-noisy": "planted, noisy labels",
    "polis-warm": "Pol.is, warm statements",
    "polis-cold": "Pol.is, cold statements",
    "ukp": "UKPConvArg1 (control)",
}


def main() -> None:
    """Print the table as Markdown."""
    print("| data | method | seen | " + " | ".join(f"{shots} shots" for shots in SHOTS) + " |")
    print("|---|---|" + "---|" * (len(SHOTS) + 1))
    for name, title in TITLES.items():
        result = json.loads((RESULTS / f"accuracy_{name}.json").read_text())
        for method, cells in result["cells"].items():
            setting = next(iter(cells)).split("/")[1]
            figures = [figure(cells[f"seen/{setting}/all"], method)]
            figures += [figure(cells[f"unseen/{setting}/{shots}"], method) for shots in SHOTS]
            print(f"| {title} | {method} | " + " | ".join(figures) + " |")


def figure(cell: dict[str, object], method: str) -> str:
    """Return an accuracy, marked where it differs from the baseline's beyond the interval."""
    difference = cell["difference"]
    assert isinstance(difference, dict)
    low, high = difference["interval"]
    mark = "" if method == "bt" else " ▲" if low > 0 else " ▼" if high < 0 else ""
    return f"{cell['accuracy']:.3f}{mark}"


if __name__ == "__main__":
    main()
