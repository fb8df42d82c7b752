"""The arithmetic of docs/scale.md: 10^8 users and 10^9 comparisons, from what was measured here.

    python jobs/benchmarks/scale.py

Prints the tables between the page's markers, from the figures in `results/` and from the size of a store that
it fills. Rates are of this machine's cores; what a faster machine does, its own `results/` say.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recording import RESULTS

USERS, COMPARISONS, ITEMS = 10**8, 10**9, 10**7
WIDTHS = (384, 4096)
NODE_CORES = 64
SAMPLE_USERS = 2000
HASH_BYTES = 33
"""Of an item that a store keeps by its content hash."""

NEEDED = ("population", "serve", "embed", "train")

Results = Mapping[str, Any]


def load() -> dict[str, Results]:
    """Return the recorded figures that the arithmetic needs, by benchmark."""
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in NEEDED}


def store_bytes(raw_bytes: int, evidence_floats: int, vector_floats: int) -> tuple[float, float]:
    """Return the bytes of a SQLite file for each user and each comparison, filled with a sample.

    Args:
        raw_bytes: of one item as it is kept.
        evidence_floats: E.
        vector_floats: Z.
    """
    from raypref.serve.stores import open_store
    from raypref.serve.stores.base import Event, Key, Store, Write

    def filled(store: Store, shots: int) -> None:
        item, evidence = bytes(raw_bytes), bytes(4 * evidence_floats)
        keys = [Key("default", f"user-{number:09d}") for number in range(SAMPLE_USERS)]
        for first in range(0, SAMPLE_USERS, 100):
            writes = [
                Write(
                    key,
                    tuple(
                        Event(f"{key.user}-{shot}", 1e9 + shot, 1.0, item, item, "0" * 12, evidence)
                        for shot in range(shots)
                    ),
                )
                for key in keys[first : first + 100]
            ]
            store.append(writes, shots)
        store.remember((key, shots, "0" * 12, bytes(4 * vector_floats)) for key in keys)
        store.compact()

    sizes: list[float] = []
    for shots in (1, 11):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "users.db"
            store = open_store(f"sqlite:///{file}", timeout_s=60.0)
            filled(store, shots)
            store.close()
            sizes.append(file.stat().st_size / SAMPLE_USERS)
    each = (sizes[1] - sizes[0]) / 10
    return sizes[0] - each, each


def bytes_table(population: Results) -> Iterator[str]:
    """Yield the table of what is kept, and where."""
    largest = population["sizes"][-1]
    shots = population["config"]["shots"]
    per_comparison = largest["limit"]["bytes_per_user"]["read"] / shots
    yield "| what | arithmetic | bytes |"
    yield "|---|---|---|"
    for width in WIDTHS:
        yield f"| items table, D = {width} | 10⁷ × {2 * width} | {_size(ITEMS * 2 * width)} |"
    comparisons = COMPARISONS * per_comparison
    yield f"| comparisons table | 10⁹ × {per_comparison:.0f}, measured | {_size(comparisons)} |"
    for name, floats in (("LoRe, K = 8", 8 + 36), ("VRF, L = 32", 64)):
        yield f"| user vectors, {name} | 10⁸ × {4 * floats} | {_size(USERS * 4 * floats)} |"
    evidence = COMPARISONS * 4 * 9
    yield f"| evidence, LoRe, K = 8 | 10⁹ × 36 | {_size(evidence)} |"
    for name, raw in (("ids", HASH_BYTES), *((f"embeddings, D = {w}", 1 + 2 * w) for w in WIDTHS)):
        user, comparison = store_bytes(raw, 9, 44)
        total = USERS * user + COMPARISONS * comparison
        yield (
            f"| store that keeps {name} | 10⁸ × {user:.0f} + 10⁹ × {comparison:.0f}, measured in SQLite "
            f"| {_size(total)} |"
        )


def seconds_table(found: Mapping[str, Results]) -> Iterator[str]:
    """Yield the table of what takes how long on one core, and how many cores do it in a day."""
    population, serve = found["population"], found["serve"]
    cores = population["machine"]["cores"]
    yield (
        "| what | measured here | core-hours | cores for one day "
        f"| nodes of {NODE_CORES} cores for one hour |"
    )
    yield "|---|---|---|---|---|"
    embed = found["embed"]
    texts = embed["texts_per_s"]["pipeline"]["median"] / embed["machine"]["cores"]
    hours = ITEMS / texts / 3600
    yield (
        f"| embed every item with a model of 22 million parameters | {texts:.0f} texts a core-second "
        f"| {hours:,.0f} | {hours / 24:,.1f} | {hours / NODE_CORES:,.1f} |"
    )
    for one in found["train"]["populations"]:
        if one["users"] == 10**4:
            rate = one["ours"]["comparisons_s"]
            hours = COMPARISONS / rate / 3600
            yield (
                f"| train LoRe on every comparison once, D = {one['dim']} | {rate / 1e3:,.0f}k a core-second "
                f"| {hours:,.1f} | {hours / 24:,.2f} | {hours / NODE_CORES:,.2f} |"
            )
    for size in population["sizes"]:
        if size["users"] < 10**5:
            continue
        core_us = size["us_per_user"] * cores
        hours = USERS * core_us / 3.6e9
        yield (
            "| adapt to 16 comparisons and score 64 candidates, everybody, VRF, slope at "
            f"10{_up(size['users'])} users | {core_us:.0f} core-µs a user | {hours:,.0f} | {hours / 24:,.1f} "
            f"| {hours / NODE_CORES:,.2f} |"
        )
    for kind, title, calls in (
        ("learn", "add every comparison through HTTP, one a request", COMPARISONS),
        ("score", "score 8 candidates for everybody through HTTP", USERS),
    ):
        per_s = serve[kind]["raypref"]["per_s"]["median"]
        machine = serve["machine"]["cores"]
        hours = calls * machine / per_s / 3600
        yield (
            f"| {title} | {per_s / machine:.0f} a core-second | {hours:,.0f} | {hours / 24:,.0f} "
            f"| {hours / NODE_CORES:,.1f} |"
        )


def slopes_table(population: Results) -> Iterator[str]:
    """Yield the measured slopes: a cost that grows with the population would break the arithmetic."""
    yield "| users | µs a user | beside plain PyTorch | peak memory of all processes |"
    yield "|---|---|---|---|"
    for size in population["sizes"]:
        low, high = size["ratio"]["range"]
        yield (
            f"| {size['users']:,} | {size['us_per_user']:.0f} | {size['ratio']['median']:.2f} "
            f"({low:.2f} to {high:.2f}) | {size['raypref']['all_peak_mib']['median']:,.0f} MiB |"
        )


def _size(count: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} B"


def _up(count: int) -> str:
    return "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(len(str(count)) - 1))


def page() -> dict[str, str]:
    """Return the tables of docs/scale.md by the names of their markers."""
    found = load()
    return {
        "bytes": "\n".join(bytes_table(found["population"])),
        "seconds": "\n".join(seconds_table(found)),
        "slopes": "\n".join(slopes_table(found["population"])),
    }


if __name__ == "__main__":
    for name, table in page().items():
        print(f"<!-- {name} -->\n{table}\n<!-- end of {name} -->\n")
