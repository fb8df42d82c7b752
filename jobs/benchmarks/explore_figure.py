"""The figure of docs/understand.md, from what explore.py recorded.

    python jobs/benchmarks/explore_figure.py

Writes `results/explore.svg`: how often the pick is right after so many answers, to questions by information
gain and to random ones, the median of the populations of each method and all that they span.
"""

from __future__ import annotations

import io
import json
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from recording import RESULTS

from raypref import files
from raypref.evaluate.canvas import PALETTE, STYLE

FILE = "explore.svg"


def drawn(found: dict[str, Any]) -> str:
    """Return the figure as SVG."""
    methods = list(dict.fromkeys(row["method"] for row in found["rows"]))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": FILE}):
        figure = Figure(figsize=(7, 2.6))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(methods), sharey=True)
        figure.subplots_adjust(left=0.08, right=0.98, top=0.88, bottom=0.18, wspace=0.1)
        for axes, method in zip(np.ravel(panels), methods, strict=True):
            rows = [row for row in found["rows"] if row["method"] == method]
            for name, label, colour, style in (
                ("gain", "information gain", PALETTE[0], "-"),
                ("random", "random questions", PALETTE[1], (0, (4, 2))),
            ):
                right_RA = np.array([row[name] for row in rows])
                answers = np.arange(right_RA.shape[1])
                axes.fill_between(
                    answers, right_RA.min(0), right_RA.max(0), color=colour, alpha=0.15, linewidth=0
                )
                axes.plot(answers, np.median(right_RA, axis=0), color=colour, linestyle=style, label=label)
            axes.axhline(found["enough"], color="#7d838c", linewidth=0.7)
            axes.set_title(method)
            axes.set_xlabel("answers")
            axes.set_xticks(range(0, len(answers), 5))
        np.ravel(panels)[0].set_ylabel("right of four")
        np.ravel(panels)[-1].legend(frameon=False, loc="lower right")
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()


def main() -> None:
    """Draw what is recorded."""
    found = json.loads((RESULTS / "explore.json").read_text())
    files.write_text(RESULTS / FILE, drawn(found))


if __name__ == "__main__":
    main()
