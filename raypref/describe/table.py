"""A description as text, for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from raypref.describe.result import Basis, Contrast, Description, Drift, ScoredItem

WIDTH = 110
SHOWN_FEATURES = 4


def text_table(description: Description) -> str:
    """Return the bases in an aligned table, and below it each of them with features and texts."""
    prompts = "" if description.prompts is None else f" to {description.prompts} prompts"
    lines = [f"{description.method}: {description.users} users, {description.items} items{prompts}"]
    for note in description.notes:
        lines += textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="  ")
    lines += ["", f"{'basis':<9}{'share':>6}{'for':>7}{'against':>9}{'undecided':>11}  name"]
    for basis in description.bases:
        leaning = basis.leaning
        counts = [leaning.positive, leaning.negative, leaning.undecided] if leaning else ["-"] * 3
        figures = "".join(f"{count:>{width}}" for count, width in zip(counts, (7, 9, 11), strict=True))
        lines.append(f"{basis.title:<9}{basis.share:6.3f}{figures}  {basis.name}")
    lines.append(f"{'rest':<9}{description.rest:6.3f}")
    for basis in description.bases:
        lines += ["", f"{basis.title}: {basis.name}", *_features(basis)]
        lines += [*_items("highest", basis.top), *_items("lowest", basis.bottom)]
        for contrast in basis.contrasts:
            lines += _contrast(contrast)
    if description.drift is not None:
        lines += ["", *_drift(description.drift)]
    return "\n".join(lines)


def _drift(drift: Drift) -> list[str]:
    low, half = (drift.agreement[int(share * (drift.users - 1))] for share in (0.1, 0.5))
    lines = [
        f"since {drift.against}, for {drift.users} users of both, over {drift.pairs} pairs of responses:",
        f"  ordered as before: at least {100 * half:.1f} % for half of the users, at most {100 * low:.1f} % "
        f"for a tenth; {100 * drift.average:.1f} % for their average",
    ]
    lines += [f"  {match.basis:<9}was {match.earlier:<9}{match.correlation:+6.2f}" for match in drift.bases]
    for title, moves in (("rose", drift.rose), ("fell", drift.fell)):
        lines += [
            f"  {title:<5}{move.before:+6.2f} → {move.now.score:+.2f}  {_short(move.now)}" for move in moves
        ]
    return lines


def _features(basis: Basis) -> list[str]:
    return [
        f"  {found.name:<16}{found.rho:+6.2f}  [{found.low:+.2f}, {found.high:+.2f}]"
        for found in basis.features[:SHOWN_FEATURES]
        if found.significant
    ]


def _items(title: str, items: Iterable[ScoredItem]) -> list[str]:
    return [f"  {title:<9}{item.score:+6.2f}  {_short(item)}" for item in items]


def _contrast(contrast: Contrast) -> list[str]:
    prompt = "" if contrast.prompt is None else f"  {_cut(contrast.prompt or '(no prompt)', WIDTH - 12)}"
    return [
        f"  contrast{prompt}",
        *(f"{'':<11}{item.score:+6.2f}  {_short(item)}" for item in (contrast.higher, contrast.lower)),
    ]


def _short(item: ScoredItem) -> str:
    return f"item {item.item}" if item.text is None else _cut(item.text, WIDTH - 19)


def _cut(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
