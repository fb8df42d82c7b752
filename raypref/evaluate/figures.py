"""The panels of the report, each from the cells of an evaluation to a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raypref.evaluate.canvas import INK, MUTED, PALETTE, Look, Picture, label_ends, label_points, picture
from raypref.evaluate.landscape import PreferenceMap
from raypref.evaluate.result import Cell, UserBin
from raypref.metrics import UncertaintyBin
from raypref.schema import Cohort

ELLIPSES = 30
"""About as many users have their uncertainty shown on a map."""
LEAST_SHARE = 0.01
"""A reliability diagram leaves out bins with a smaller share of the comparisons."""

KEY_FONT = {"fontsize": 7, "fontweight": "bold"}


def few_shots(
    name: str,
    title: str,
    curves: Mapping[str, Sequence[Cell]],
    style: Mapping[str, Look],
    limits: tuple[float, float],
) -> Picture:
    """Draw accuracy against shots, with the interval as a band; `curves` holds each method's cells."""
    shots = sorted({cell.shots for cells in curves.values() for cell in cells if cell.shots is not None})

    def draw(axes: Any) -> None:
        ends = []
        for method, cells in curves.items():
            x = [shots.index(cell.shots) for cell in cells if cell.shots is not None]
            estimates = [cell.accuracy_per_user for cell in cells]
            look = style[method]
            axes.fill_between(
                x,
                [e.low for e in estimates],
                [e.high for e in estimates],
                color=look.colour,
                alpha=0.1,
                lw=0,
            )
            axes.plot(x, [e.mean for e in estimates], **look.line)
            ends.append((estimates[-1].mean, method, look.colour))
        axes.set(
            title=title,
            xlabel="comparisons given by the user",
            ylabel="accuracy, mean over users",
            ylim=limits,
        )
        axes.set_xticks(range(len(shots)), [str(s) for s in shots])
        axes.set_xlim(-0.2, max(len(shots) - 0.8, 0.3))
        label_ends(axes, ends)

    said = [
        f"{method} from {cells[0].accuracy_per_user.mean:.3f} at {cells[0].shots} to "
        f"{cells[-1].accuracy_per_user.mean:.3f} at {cells[-1].shots}"
        for method, cells in curves.items()
    ]
    return picture(name, f"{title}: accuracy by number of comparisons; {'; '.join(said)}.", draw)


def reliability(name: str, title: str, cells: Mapping[str, Cell], style: Mapping[str, Look]) -> Picture:
    """Draw accuracy against confidence; a marker's area is the share of the comparisons."""

    def draw(axes: Any) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=INK, lw=0.8, ls=(0, (1, 2)))
        key = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
        by_ece = sorted(cells.items(), key=lambda pair: pair[1].ece)
        for row, (method, cell) in enumerate(by_ece):
            look, total = style[method], sum(b.count for b in cell.reliability)
            bins = [b for b in cell.reliability if b.count >= LEAST_SHARE * total]
            x, y, area = zip(
                *((b.confidence, b.accuracy, 4 + 90 * b.count / total) for b in bins), strict=True
            )
            axes.plot(x, y, **{**look.line, "marker": "", "linewidth": 1.0})
            axes.scatter(x, y, s=area, color=look.colour, marker=look.marker, lw=0, alpha=0.85, zorder=3)
            axes.annotate(
                f"{method} {cell.ece:.3f}",
                (1, 1),
                xytext=(4, -18 - 10 * row),
                color=look.colour,
                **key,
                **KEY_FONT,
            )
        axes.annotate("ECE", (1, 1), xytext=(4, -8), color=MUTED, **key, **KEY_FONT)
        axes.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0.49, 1.01))

    said = "; ".join(f"{method} {cell.ece:.3f}" for method, cell in cells.items())
    return picture(
        name, f"{title}: accuracy by confidence; expected calibration error {said}.", draw, right=0.75
    )


def selective(name: str, title: str, cells: Mapping[str, Cell], style: Mapping[str, Look]) -> Picture:
    """Draw accuracy when the model abstains on what it is least certain of."""

    def draw(axes: Any) -> None:
        ends = []
        for method, cell in cells.items():
            points, look = cell.uncertainty.selective, style[method]
            x, y = [100 * p.coverage for p in points], [p.accuracy for p in points]
            axes.plot(x, y, **{**look.line, "marker": ""})
            ends.append((y[0], method, look.colour))
        axes.set(title=title, xlabel="most confident share of the comparisons, %", ylabel="accuracy")
        axes.set_xlim(102, 5)
        label_ends(axes, ends)

    said = [
        f"{method} {_at(cell, 0.25):.3f} on the most confident quarter, {_at(cell, 1.0):.3f} on all"
        for method, cell in cells.items()
    ]
    return picture(name, f"{title}: selective accuracy; {'; '.join(said)}.", draw)


def by_uncertainty(
    name: str, title: str, cells: Mapping[str, Cell], style: Mapping[str, Look], of_users: bool
) -> Picture:
    """Draw accuracy by quantile of the uncertainty about the pair, or about the user, then with intervals."""
    most = max(len(_bins(cell, of_users)) for cell in cells.values())

    def draw(axes: Any) -> None:
        labels = []
        for i, (method, cell) in enumerate(cells.items()):
            look, bins = style[method], _bins(cell, of_users)
            # Side by side, or the intervals of different methods hide each other.
            x = np.arange(len(bins)) + 0.3 * ((i + 0.5) / len(cells) - 0.5)
            for place, part in zip(x, bins, strict=True):
                if isinstance(part, UserBin):
                    axes.vlines(place, part.accuracy.low, part.accuracy.high, color=look.colour, lw=1)
            axes.plot(x, [_mean(part) for part in bins], **look.line)
            labels.append((_mean(bins[-1]), method, look.colour))
        what = "users" if of_users else "comparisons"
        axes.set(title=title, xlabel=f"{what} by uncertainty: certain → uncertain", ylabel="accuracy")
        axes.set_xticks(range(most), [str(i + 1) for i in range(most)])
        axes.set_xlim(-0.35, most - 0.65)
        label_ends(axes, labels)

    ends = {method: (_bins(cell, of_users)[0], _bins(cell, of_users)[-1]) for method, cell in cells.items()}
    said = [
        f"{method} from {_mean(first):.3f} where most certain to {_mean(last):.3f} where least"
        for method, (first, last) in ends.items()
    ]
    return picture(name, f"{title}: accuracy by uncertainty; {'; '.join(said)}.", draw)


def preference_map(name: str, title: str, place: PreferenceMap) -> Picture:
    """Draw users, how uncertain the model is about some of them, and the bases."""
    colours: dict[Cohort, str] = {"seen": PALETTE[0], "unseen": PALETTE[1]}

    def draw(axes: Any) -> None:
        from matplotlib.patches import Ellipse

        position_U2 = np.array(place.positions).reshape(-1, 2)
        ellipses = list(zip(place.positions, place.ellipses or (), place.cohorts, strict=False))
        for xy, ellipse, cohort in ellipses[:: max(1, len(ellipses) // ELLIPSES)]:
            shape = {"width": 2 * ellipse.major, "height": 2 * ellipse.minor, "angle": ellipse.angle}
            colour = colours[cohort]
            axes.add_patch(Ellipse(xy, **shape, facecolor="none", edgecolor=colour, alpha=0.45, lw=0.6))
            axes.add_patch(Ellipse(xy, **shape, facecolor=colour, alpha=0.05, lw=0))
        for row, (cohort, colour) in enumerate(colours.items()):
            mine = np.array(place.cohorts) == cohort
            look = {"color": colour, "marker": "o^"[row], "lw": 0, "alpha": 0.75}
            axes.scatter(*position_U2[mine].T, s=7, zorder=2, **look)
            key = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (66 * row, 4)}
            axes.annotate(f"{'●▲'[row]} {cohort} users", (0, 1), color=colour, **key, **KEY_FONT)
        x, y = (f"axis {i + 1} ({share:.0%} of variance)" for i, share in enumerate(place.explained))
        axes.set_title(title, pad=14)
        axes.set(xlabel=x, ylabel=y)
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.05, 0.15)
        axes.figure.subplots_adjust(top=0.85)
        if place.bases:
            axes.scatter(*np.array(place.bases).T, s=20, marker="D", color=INK, lw=0, zorder=3)
            label_points(axes, place.bases)

    counts = ", ".join(f"{sum(c == cohort for c in place.cohorts)} {cohort}" for cohort in colours)
    alt = f"{title}: {counts} users and {len(place.bases or ())} bases on two principal axes, "
    return picture(name, alt + f"which hold {sum(place.explained):.0%} of the variance.", draw, right=0.97)


def _at(cell: Cell, coverage: float) -> float:
    points = cell.uncertainty.selective
    return min(points, key=lambda point: abs(point.coverage - coverage)).accuracy


def _bins(cell: Cell, of_users: bool) -> Sequence[UserBin | UncertaintyBin]:
    return cell.uncertainty.by_user if of_users else cell.uncertainty.by_quantile


def _mean(part: UserBin | UncertaintyBin) -> float:
    return part.accuracy.mean if isinstance(part, UserBin) else part.accuracy
