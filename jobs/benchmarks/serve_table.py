"""The table of serving, from what `serve.py` recorded: `python jobs/benchmarks/serve_table.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "serve.json"

KINDS = {
    "score": "score 8 embeddings (D = 384, base64) for one of 1,000 users",
    "learn": "add one comparison, durable in SQLite",
}


def main() -> None:
    """Print the table as Markdown."""
    found = json.loads(RESULTS.read_text())
    print("| request | connections | requests/s | p50, p99 | beside do-nothing |")
    print("|---|---|---|---|---|")
    for kind, title in KINDS.items():
        for measured in (found[kind], found["low_load"][kind]):
            print(f"| {title} | {measured['connections']} | " + " | ".join(_row(measured)) + " |")
    print()
    print("| 1,000 users × 64 candidates, VRF | CPU outside the products, at first | now | share of all |")
    print("|---|---|---|---|")
    bulk = found["bulk"]
    before = {_kind(one): one for one in bulk["before"]}
    for one in bulk["now"]:
        if one["method"] == "vrf":
            then = before[_kind(one)]
            times = f"{then['outside_ms']:.1f} ms | {one['outside_ms']:.1f} ms"
            shares = f"{then['outside_share']:.2f}, now {one['outside_share']:.2f}"
            print(f"| {one['form']}, D = {one['width']} | {times} | {shares} |")


def _kind(one: Mapping[str, Any]) -> tuple[Any, ...]:
    return one["method"], one["width"], one["form"]


def _row(measured: Mapping[str, Any]) -> list[str]:
    ours, ratio = measured["raypref"], measured["ratio"]
    low, high = ratio["range"]
    return [
        f"{ours['per_s']['median']:.0f}",
        f"{ours['p50_ms']['median']:.1f} ms, {ours['p99_ms']['median']:.0f} ms",
        f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})",
    ]


if __name__ == "__main__":
    main()
