"""The table of speed, from what the benchmarks recorded: `python jobs/benchmarks/speed_table.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from recording import RESULTS

Results = Mapping[str, Any]

TRAINING = {"full_batch": 1.0, "walk": 20.0, "joint": 3.0, "schedule": None}
"""How many times as fast as which competitor training should be; None is no competitor, but a comparison."""


def main() -> None:
    """Print the table as Markdown."""
    print("| what | measured | beside | wanted | measured | |")
    print("|---|---|---|---|---|---|")
    for name, rows in ROWS.items():
        found = json.loads((RESULTS / f"{name}.json").read_text())
        for what, rate, beside, wanted, measured, reached in rows(found):
            print(
                f"| {what} | {rate} | {beside} | {wanted} | {measured} | {'yes' if reached else '**no**'} |"
            )


Row = tuple[str, str, str, str, str, bool]


def train(found: Results) -> Iterator[Row]:
    """Yield LoRe's training beside the others, for each population."""
    for one in found["populations"]:
        times = {name: one.get(f"times_{name}") for name in TRAINING}
        yield (
            f"LoRe training, {one['users']:,} users × 45, D = {one['dim']}",
            f"{one['ours']['comparisons_s'] / 1e3:,.0f}k comparisons/s",
            "to the best of: a full-batch loop, the same walking the users, mini-batch Adam on weights and "
            "bases; our own objective, its schedule known in hindsight",
            ", ".join(f"{wanted:g}×" if wanted else "–" for wanted in TRAINING.values()),
            ", ".join("never" if found is None else f"{found:.1f}×" for found in times.values()),
            all((times[name] or 0.0) >= wanted for name, wanted in TRAINING.items() if wanted),
        )


def adapt(found: Results) -> Iterator[Row]:
    """Yield every method's `infer`."""
    for name, one in found["methods"].items():
        if not one["bytes_per_user"]:
            # All users are one, and there is nothing to infer.
            continue
        rate = one["users_s"]["median"]
        wanted = one["reach_users_s"]
        alone, batched = one["times_steps_one_at_a_time"], one["times_batched_steps"]
        yield (
            f"`infer`, {found['shots']} shots, batch {found['batch']:,}, {name}",
            f"{rate:,.0f} users/s",
            "500 Adam steps, batched and one user at a time",
            f"{wanted:,} users/s, 1,000× alone" if wanted else "1,000× alone",
            f"{batched:,.0f}×, {alone:,.0f}×",
            alone >= 1000 and rate >= (wanted or 0),
        )


def score(found: Results) -> Iterator[Row]:
    """Yield items and evidence of all methods together, for each width and type."""
    key = lambda row: (row["what"], row["dim"], row["dtype"])  # noqa: E731
    for (what, dim, dtype), group in groupby(sorted(found["rows"], key=key), key):
        rows = list(group)
        rates = [row["rows_s"]["median"] for row in rows]
        ratios = {row["method"]: row["ratio"]["median"] for row in rows}
        lowest = min(ratios, key=lambda name: ratios[name])
        yield (
            f"`{what}`, D = {dim}, {dtype}, {len(rows)} methods",
            f"{min(rates) / 1e3:,.0f}k to {max(rates) / 1e3:,.0f}k rows/s",
            "the matrix products alone",
            f"{found['reach']:g}",
            f"{ratios[lowest]:.2f} ({lowest}) to {max(ratios.values()):.2f}",
            ratios[lowest] >= found["reach"],
        )


def ingest(found: Results) -> Iterator[Row]:
    """Yield disk to training step."""
    for one in found["widths"]:
        for name, rate, ratio in (
            ("steps in memory", one["steps_gb_per_s"], one["ratio"]),
            ("first pass, checksums included", one["first_pass_gb_per_s"], one["first_pass_ratio"]),
        ):
            yield (
                f"ingest, fp16, D = {one['dim']}, {name}",
                f"{rate['median']:.2f} GB/s",
                "`pyarrow` to tensors",
                f"{found['reach']:g}",
                _ranged(ratio),
                ratio["median"] >= found["reach"],
            )


def embed(found: Results) -> Iterator[Row]:
    """Yield the embedding pipeline."""
    rate = f"{found['texts_per_s']['pipeline']['median']:,.0f} texts/s"
    reached = found["ratio"]["median"] >= found["reach"]
    yield "embedding", rate, "vLLM's engine alone", f"{found['reach']:g}", _ranged(found["ratio"]), reached


def population(found: Results) -> Iterator[Row]:
    """Yield adapting and scoring whole populations, and whether cost and memory stay flat."""
    for one in found["sizes"]:
        yield (
            f"adapt and score {one['users']:,} users, 64 candidates",
            f"{one['us_per_user']:,.0f} µs a user",
            "NumPy and PyTorch without Ray",
            "0.7 at 10⁶",
            _ranged(one["ratio"]),
            one["ratio"]["median"] >= 0.7 or one["users"] < 10**6,
        )
    reach = found["reach"]
    for name, key, reached in (
        ("cost a user, by the clock", "wall_per_user", "wall_per_user"),
        ("cost a user, CPU", "cpu_per_user", "cpu_per_user"),
        ("peak memory", "peak_memory", "memory"),
    ):
        times = reach[f"{key}_largest_over_smallest"]
        what = f"{name}, 10⁴ to 10⁶ users"
        yield what, "", "its smallest", "1.2×", f"{times:.2f}×", reach["reached"][reached]


def sweep(found: Results) -> Iterator[Row]:
    """Yield a sweep of small trials."""
    rate = f"{found['sweep_s']['median']:.0f} s"
    reached = found["ratio"]["median"] <= found["reach"]
    yield (
        f"sweep of {found['config']['sweep']['trials']} small trials",
        rate,
        "the fits in a plain loop",
        f"{found['reach']:g}× its time",
        f"{found['ratio']['median']:.2f}×",
        reached,
    )


def _ranged(found: Mapping[str, Any]) -> str:
    low, high = found["range"]
    return f"{found['median']:.2f} ({low:.2f} to {high:.2f})"


ROWS = {
    "train": train,
    "adapt": adapt,
    "score": score,
    "ingest": ingest,
    "embed": embed,
    "population": population,
    "sweep": sweep,
}

if __name__ == "__main__":
    main()
