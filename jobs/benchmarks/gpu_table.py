"""The tables of a GPU, from what `gpu.py` recorded: `python jobs/benchmarks/gpu_table.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recording import RESULTS

Figures = Mapping[str, Any]
Row = Sequence[str]


def main() -> None:
    """Print the tables as Markdown."""
    found = json.loads((RESULTS / "gpu.json").read_text())
    peaks = found["peaks"]
    print(
        f"{found['device']['name']}: {peaks['float32_flops'] / 1e12:.3g} TFLOP/s in float32, "
        f"{peaks['tf32_flops'] / 1e12:.3g} in TF32, {peaks['bfloat16_flops'] / 1e12:.3g} in bfloat16; copies "
        f"{peaks['copy_bytes'] / 1e12:.2f} TB/s, from the CPU's memory {peaks['host_bytes'] / 1e9:.1f} GB/s."
    )
    for heads, cells in TABLES:
        print(f"\n| method | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
        for name, figures in found["methods"].items():
            print(f"| {name} | {' | '.join(cells(figures))} |")


def training(figures: Figures) -> Row:
    """Return steps of the recipe's users and of more, in each precision, and steps that begin with a copy."""
    few = min(row["users"] for row in figures["training"])
    small = [row for row in figures["training"] if row["users"] == few]
    large = [row for row in figures["training"] if row["users"] != few]
    host = [figures["from_host"]]
    return (
        *(text for rows in (small, large) for text in (*_rates(rows, "comparisons"), _running(rows[:1]))),
        *_rates(host, "comparisons"),
        _memory(large),
    )


def rows(figures: Figures) -> Row:
    """Return items and evidence in each form."""
    items, evidence = (
        [row for row in figures["rows"] if row["what"] == what] for what in ("item", "evidence")
    )
    errors = (f"{row['error']:.0e}" for row in items)
    return *_rates(items, "rows"), " / ".join(errors), *_rates(evidence, "rows")


def users(figures: Figures) -> Row:
    """Return inferring users, and rewards of candidates for them."""
    inferred, judged = figures["infer"][:1], figures["reward"][:1]
    return *_rates(inferred, "users"), *_rates(judged, "scores"), _memory(judged)


def _rates(found: Sequence[Figures], unit: str) -> tuple[str, str]:
    """Return rates and their shares of the limits."""
    return (
        " / ".join(_short(row[f"{unit}_s"]["median"]) for row in found) or "–",
        " / ".join(f"{row['share']:.2g}" for row in found) or "–",
    )


def _running(found: Iterable[Figures]) -> str:
    """Return the share of a step's time in which any kernel runs, and how many do."""
    known = [(row["kernels"], row["step_s"]["median"]) for row in found if row["kernels"]]
    return " / ".join(f"{one['busy_s'] / step_s:.2f} in {one['kernels']}" for one, step_s in known) or "–"


def _memory(found: Sequence[Figures]) -> str:
    known = [row["peak_bytes"] for row in found if row["peak_bytes"] is not None]
    return f"{max(known) / 2**30:.1f} GiB" if known else "–"


def _short(rate: float) -> str:
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if rate >= 10**power:
            return f"{rate / 10**power:.3g}{letter}"
    return f"{rate:.3g}"


TABLES: tuple[tuple[Row, Callable[[Figures], Row]], ...] = (
    (
        (
            "training step, comparisons/s, float32 / TF32 / bfloat16",
            "of the limit",
            "kernels run, float32",
            "8 × the users",
            "of the limit",
            "kernels run, float32",
            "from the CPU's memory, float32",
            "of that copy",
            "memory",
        ),
        training,
    ),
    (
        (
            "`item`, rows/s, float32 / in TF32 / float16 / in TF32 / bfloat16",
            "of the limit",
            "error",
            "`evidence`, rows/s",
            "of the limit",
        ),
        rows,
    ),
    (
        ("`infer`, users/s", "of the limit", "`reward`, users × candidates/s", "of the limit", "memory"),
        users,
    ),
)

if __name__ == "__main__":
    main()
