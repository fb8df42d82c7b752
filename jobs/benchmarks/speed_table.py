"""The tables of speed, from what the benchmarks recorded.

python jobs/benchmarks/speed_table.py              # every row, for docs/speed.md
python jobs/benchmarks/speed_table.py --summary    # a row a question, for the README
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from recording import RESULTS

Results = Mapping[str, Any]

TRAINING = {"full_batch": 1.0, "walk": 20.0, "joint": 3.0, "schedule": None}
"""How many times as fast as which competitor training should be; None is no competitor, but a comparison."""


def main() -> None:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--summary", action="store_true", help="a row a question")
    if parser.parse_args().summary:
        print_summary()
    else:
        print_all()


def print_all() -> None:
    """Print every row."""
    print("| what | measured | beside | wanted | measured | |")
    print("|---|---|---|---|---|---|")
    for name, rows in ROWS.items():
        found = json.loads((RESULTS / f"{name}.json").read_text())
        for what, rate, beside, wanted, measured, reached in rows(found):
            print(
                f"| {what} | {rate} | {beside} | {wanted} | {measured} | {'yes' if reached else '**no**'} |"
            )


def print_summary() -> None:
    """Print a row a question, with the command that answers it."""
    print("| figure | beside, in the same run | wanted | measured | | command |")
    print("|---|---|---|---|---|---|")
    for name, lines in SUMMARY.items():
        found = json.loads((RESULTS / f"{name}.json").read_text())
        for what, beside, wanted, measured, reached in lines(found):
            cells = (what, beside, wanted, measured, "yes" if reached else "**no**")
            print(f"| {' | '.join(cells)} | `python jobs/benchmarks/{name}.py` |")


Row = tuple[str, str, str, str, str, bool]
Line = tuple[str, str, str, str, bool]


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
        limited, whole = (
            one["larger_than_memory"][name]["comparisons_per_s"] for name in ("limited", "in_memory")
        )
        yield (
            f"training on a table of three times the memory, D = {one['dim']}",
            f"{limited / 1e3:,.0f}k comparisons/s",
            f"all of it in memory: {whole / 1e3:,.0f}k",
            "–",
            f"{limited / whole:.2f}",
            True,
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


def summary_of_train(found: Results) -> Iterator[Line]:
    """Yield how soon LoRe is as accurate as others, over all populations."""
    what = "LoRe training to a held-out accuracy, 1,000 and 10,000 users × 45, D = 384 and 4096"
    for name, beside, wanted, users in (
        ("full_batch", "a full-batch PyTorch loop", 1.0, 0),
        ("walk", "a loop that walks 10,000 users one by one", 20.0, 10_000),
        ("joint", "mini-batch Adam at its best rate and length", 3.0, 0),
    ):
        times = [one[f"times_{name}"] for one in found["populations"] if one["users"] >= users]
        measured = ", ".join(f"{each:.1f}×" for each in times)
        yield what, beside, f"{wanted:g}×", measured, min(times) >= wanted
        what = "the same"


def summary_of_adapt(found: Results) -> Iterator[Line]:
    """Yield users a second."""
    methods = found["methods"]
    for name in ("lore", "pref", "vrf"):
        rate, wanted = methods[name]["users_s"]["median"], methods[name]["reach_users_s"]
        yield (
            f"`infer`, {found['shots']} shots, batch {found['batch']:,}, {name}, a core",
            "–",
            f"{wanted:,} users/s",
            f"{rate:,.0f} users/s",
            rate >= wanted,
        )
    times = [one["times_steps_one_at_a_time"] for one in methods.values() if one["bytes_per_user"]]
    yield (
        f"`infer`, {len(times)} methods",
        "500 Adam steps, a user at a time",
        "1,000×",
        f"{min(times):,.0f}× to {max(times):,.0f}×",
        min(times) >= 1000,
    )


def summary_of_score(found: Results) -> Iterator[Line]:
    """Yield towers beside their products."""
    for what in ("evidence", "item"):
        ratios = [row["ratio"]["median"] for row in found["rows"] if row["what"] == what]
        held = sum(ratio >= found["reach"] for ratio in ratios)
        yield (
            f"`{what}`, rows/s, D = 384 and 4096, float32, float16 and bfloat16",
            "the matrix products alone",
            f"{found['reach']:g}",
            f"{min(ratios):.2f} to {max(ratios):.2f}; {held} of {len(ratios)} methods and shapes reach it",
            held == len(ratios),
        )


def summary_of_ingest(found: Results) -> Iterator[Line]:
    """Yield embeddings on their way to a step."""
    for what, key in (
        ("training steps", "ratio"),
        ("the first pass, which checks and unpacks", "first_pass_ratio"),
    ):
        ratios = [one[key]["median"] for one in found["widths"]]
        yield (
            f"ingest, GB/s of float16, D = 384 and 4096, {what}",
            "`pyarrow` to tensors",
            f"{found['reach']:g}",
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
            min(ratios) >= found["reach"],
        )


def summary_of_embed(found: Results) -> Iterator[Line]:
    """Yield the embedding pipeline."""
    ratio = found["ratio"]["median"]
    reached = ratio >= found["reach"]
    yield "embedding, texts/s", "vLLM's engine alone", f"{found['reach']:g}", f"{ratio:.2f}", reached


def summary_of_population(found: Results) -> Iterator[Line]:
    """Yield whole populations."""
    largest, reach = found["sizes"][-1], found["reach"]
    ratio, whole = largest["ratio"]["median"], largest["ratio_with_start"]["median"]
    yield (
        f"adapt (VRF) and score {largest['users']:,} users, 64 candidates",
        "NumPy and PyTorch without Ray",
        "0.7",
        f"{ratio:.2f}; {whole:.2f} with Ray's start",
        ratio >= 0.7,
    )
    for name, key, reached in (
        ("cost a user by the clock, which falls", "wall_per_user", "wall_per_user"),
        ("peak memory", "peak_memory", "memory"),
    ):
        times = reach[f"{key}_largest_over_smallest"]
        yield f"{name}, 10⁴ to 10⁶ users", "its smallest", "1.2×", f"{times:.2f}×", reach["reached"][reached]


def summary_of_sweep(found: Results) -> Iterator[Line]:
    """Yield a sweep of small trials."""
    ratio = found["ratio"]["median"]
    trials = found["config"]["sweep"]["trials"]
    reached = ratio <= found["reach"]
    yield (
        f"sweep of {trials} small trials",
        "the fits in a plain loop",
        f"{found['reach']:g}×",
        f"{ratio:.2f}×",
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

SUMMARY = {
    "train": summary_of_train,
    "adapt": summary_of_adapt,
    "score": summary_of_score,
    "ingest": summary_of_ingest,
    "embed": summary_of_embed,
    "population": summary_of_population,
    "sweep": summary_of_sweep,
}

if __name__ == "__main__":
    main()
