"""Accuracy over one parameter, a mark a trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypref.evaluate.canvas import INK, MUTED, PALETTE, Picture, picture
from raypref.tune.ledger import Record
from raypref.tune.space import Choice, Parameter, word

FINISHED, STOPPED = PALETTE[0], MUTED


def over_parameter(parameter: Parameter, records: Sequence[Record], best: Record, judged: str) -> Picture:
    """Draw the accuracy of each trial over its value of a parameter; those stopped early are hollow.

    Args:
        parameter: what is varied.
        records: of all trials.
        best: the one to ring.
        judged: name of the cell that the accuracy is of.
    """
    told = [record for record in records if record.looks]
    finished = [record for record in told if record.status == "finished"]
    stopped = [record for record in told if record.status != "finished"]

    def x(record: Record) -> float:
        value = record.values[parameter.path]
        return parameter.values.index(value) if isinstance(parameter, Choice) else value

    def draw(axes: Any) -> None:
        for some, look in (
            (stopped, {"facecolors": "none", "edgecolors": STOPPED}),
            (finished, {"color": FINISHED}),
        ):
            accuracies = [record.looks[-1].accuracy for record in some]
            axes.scatter([x(record) for record in some], accuracies, s=14, lw=0.7, zorder=2, **look)
        at = (x(best), best.looks[-1].accuracy)
        axes.scatter(*at, s=48, facecolors="none", edgecolors=INK, lw=0.9, zorder=3)
        axes.set(title=parameter.path, xlabel=parameter.path.rpartition(".")[2], ylabel="accuracy")
        if isinstance(parameter, Choice):
            labels = [word(value) for value in parameter.values]
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        elif parameter.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")

    at = f"best {best.looks[-1].accuracy:.3f} at {word(best.values[parameter.path])}"
    said = f"{len(finished)} trials finished, {len(stopped)} stopped before; {at}"
    name = parameter.path.replace(".", "-")
    return picture(name, f"Accuracy ({judged}) over {parameter.path}: {said}.", draw, right=0.96)
