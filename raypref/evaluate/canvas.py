"""What all figures share: one style, one look a method, and the way from a drawing to SVG and PDF."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

INK, MUTED = "#1b1f24", "#7d838c"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#A6761D")
"""Okabe and Ito's colours that show on white and on black, and two more."""
MARKERS = "os^Dvp*X"
WIDTH, HEIGHT = 3.5, 2.7
LABEL_GAP = 8.5
"""Least distance of two labels, points."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": MUTED,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.8,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Picture:
    """A finished figure."""

    name: str
    alt: str
    """What it shows, in words, for those who do not see it."""
    svg: str
    """An `<svg>` element; ink takes the colour of the text around it."""
    pdf: bytes


@dataclass(frozen=True)
class Look:
    """How a method is drawn, the same in all figures."""

    colour: str
    marker: str
    dashed: bool

    @property
    def line(self) -> dict[str, Any]:
        """Matplotlib's arguments for its line."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": (0, (4, 2)) if self.dashed else "-",
            "markeredgewidth": 0,
        }


def looks(names: Sequence[str], baseline: str | None) -> dict[str, Look]:
    """Return how each method is drawn: the baseline grey and dashed, the others by their order."""
    others = [name for name in names if name != baseline]
    found = {
        name: Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], False)
        for i, name in enumerate(others)
    }
    return {name: found.get(name, Look(MUTED, "o", True)) for name in names}


def label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name right of its end, moved apart where names would touch."""
    low, high = axes.get_ylim()
    points = axes.get_position().height * axes.figure.get_figheight() * 72
    ordered = sorted(ends)
    wanted = [(y - low) / (high - low) * points for y, _, _ in ordered]
    for (_, text, colour), y in zip(ordered, spread(wanted, LABEL_GAP), strict=True):
        axes.annotate(
            text, (1, 0), xycoords="axes fraction", textcoords="offset points", xytext=(4, y), color=colour,
            va="center", fontsize=7.5, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return the nearest ascending positions at least `gap` apart: isotonic regression of what is wanted."""
    groups: list[tuple[float, int]] = []
    for i, y in enumerate(wanted):
        mean, size = y - i * gap, 1
        while groups and groups[-1][0] >= mean:
            other, count = groups.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        groups.append((mean, size))
    flat = [mean for mean, size in groups for _ in range(size)]
    return [y + i * gap for i, y in enumerate(flat)]


def label_points(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """Number points from 1: away from their middle, moved apart where numbers would touch, each on a line."""
    axes.apply_aspect()
    at_K2 = axes.transData.transform(np.array(points)) * 72 / axes.figure.dpi
    outward_K2 = at_K2 - at_K2.mean(0)
    length_K1 = np.linalg.norm(outward_K2, axis=1, keepdims=True)
    turn_K = np.arange(len(at_K2)) * 2 * np.pi / len(at_K2)
    # Points in one place have no outward direction of their own: they take turns.
    around_K2 = np.stack([np.cos(turn_K), np.sin(turn_K)], axis=1)
    offset_K2 = 12 * np.where(length_K1 > 1, outward_K2 / np.maximum(length_K1, 1), around_K2)
    for _ in range(200):
        apart_KK2 = (at_K2 + offset_K2)[:, None] - (at_K2 + offset_K2)[None]
        distance_KK1 = np.linalg.norm(apart_KK2, axis=2, keepdims=True)
        close_KK1 = (distance_KK1 < LABEL_GAP + 1) & (distance_KK1 > 0)
        offset_K2 += np.where(close_KK1, apart_KK2 / np.maximum(distance_KK1, 1e-9), 0.0).sum(1)
    for k, (point, offset_2) in enumerate(zip(points, offset_K2, strict=True)):
        axes.annotate(
            str(k + 1), point, xytext=tuple(offset_2), textcoords="offset points", ha="center", va="center",
            fontsize=7, fontweight="bold", zorder=4, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.5, "shrinkA": 3, "shrinkB": 0},
        )  # fmt: skip


def picture(name: str, alt: str, draw: Callable[[Any], None], right: float = 0.84) -> Picture:
    """Return what `draw` draws on a panel's axes, which end at the share `right` of its width."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        FigureCanvasAgg(figure)
        figure.subplots_adjust(left=0.15, right=right, top=0.9, bottom=0.165)
        draw(figure.add_subplot())
        svg, pdf = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Picture(name, alt, _inline(svg.getvalue(), name), pdf.getvalue())


def _inline(svg: str, name: str) -> str:
    """Return a standalone SVG as an element of a page: own ids, no prologue, ink of the page's text."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = element.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    element = re.sub(r' xmlns(:xlink)?="[^"]*"', "", element).replace("xlink:href", "href")
    element = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', 'aria-hidden="true" focusable="false"', element, count=1
    )
    return element.replace(INK, "currentColor").strip()
