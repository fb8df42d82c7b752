"""GB/s of fp16 embeddings from disk to the training step, beside pyarrow reading the same files to tensors.

    python jobs/benchmarks/ingest.py [--quick --out FOLDER]

Three rates of ours: the steps of a training on a table that is in memory, the first pass over a table that
no process of the node has opened yet (checksums and unpacking included), and the steps on a table three times
the memory that the process is given, page cache included, which needs root. pyarrow reads the same Parquet
files to fp16 tensors, in order, and does not check them; ours looks rows up in any order and widens them to
float32.

Writes `results/ingest.json`. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from limited import drop_pages, join, memory_group
from recording import options, parse, python, save, spread, surroundings, tell, told

from raypref.data.episodes import BLOCK_BYTES, EpisodeSampler
from raypref.data.items import ItemTable, write_items
from raypref.data.tables import Comparisons
from raypref.methods.lore import LoReConfig
from raypref.schema import Embedder, content_hash
from raypref.train.loop import start, train
from raypref.types import Dims

FILE = "ingest.json"

COMPARISONS = 45
"""Of each user. All together are as many as the items, so an epoch touches nearly all of the table."""

PAGE_BYTES = 4096
READERS = 64
"""Threads that read at once where the disk's own rate is measured: its queue is never empty."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    parser = options(__doc__, FILE)
    parser.add_argument("--steps", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--users", type=int, help=argparse.SUPPRESS)
    given = parse(parser, arguments)
    torch.set_num_threads(1)
    if given.steps:
        if given.group:
            # The optimiser imports it otherwise, and its memory is no part of what is measured.
            importlib.import_module("torch._dynamo")
            join(given.group)
        tell(training(given.steps, given.users, given.seconds))
        return 0
    size, users, rounds, seconds = (2**28, 8, 2, 0.5) if given.quick else (3 * 2**30, 64, 5, 15.0)
    widths = (384,) if given.quick else (384, 4096)
    result = {
        "command": "python jobs/benchmarks/ingest.py",
        **surroundings("torch", "pyarrow", "numpy"),
        "config": {
            "table_bytes": size,
            "comparisons_per_user": COMPARISONS,
            "users_per_step": users,
            "rounds": rounds,
        },
        "reach": 0.7,
        "widths": [measured(dim, size // (2 * dim), users, rounds, seconds) for dim in widths],
    }
    save(given.out / FILE, result)
    print(json.dumps(result["widths"], indent=1))
    return 0


def measured(dim: int, rows: int, users: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return all figures of one width of embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAYPREF_CACHE"] = str(Path(folder) / "cache")
        directory = written(Path(folder) / "items", dim, rows)
        table_bytes = 2 * dim * rows
        begun_s = time.perf_counter()
        items = ItemTable.open(directory)
        unpacking_s = time.perf_counter() - begun_s
        stream = sampler(items, users).stream()
        read_bytes = sum(2 * block.numel() for block in _blocks(next(stream)))
        found: dict[str, list[float]] = {name: [] for name in ("pyarrow", "steps", "look up", "widen")}
        for _ in range(rounds):
            found["pyarrow"].append(_rate(lambda: arrow(directory, dim), table_bytes))
            for _ in range(3):
                next(stream)
            found["steps"].append(_rate(lambda: next(stream), read_bytes, seconds))
            for name, run in limits(items, read_bytes // (2 * dim)).items():
                found[name].append(_rate(run, read_bytes, seconds / 4))
        stream.close()
        first_pass = [
            table_bytes / (unpacking_s + table_bytes / (1e9 * rate)) / 1e9 for rate in found["steps"]
        ]
        pairs = zip(found["steps"], found["pyarrow"], strict=True)
        limit = [1 / (1 / one + 1 / two) for one, two in zip(found["look up"], found["widen"], strict=True)]
        return {
            "dim": dim,
            "rows": rows,
            "pyarrow_gb_per_s": spread(found["pyarrow"]),
            "steps_gb_per_s": spread(found["steps"]),
            "ratio": spread([ours / theirs for ours, theirs in pairs]),
            "first_pass_gb_per_s": spread(first_pass),
            "first_pass_ratio": spread([a / b for a, b in zip(first_pass, found["pyarrow"], strict=True)]),
            "limit": {
                "is": "rows looked up into memory that is in use already, then widened there, on one core",
                "look_up_gb_per_s": spread(found["look up"]),
                "widen_gb_per_s": spread(found["widen"]),
                "gb_per_s": spread(limit),
                "share": spread([a / b for a, b in zip(found["steps"], limit, strict=True)]),
            },
            "larger_than_memory": larger_than_memory(directory, table_bytes, users, seconds),
        }


def written(directory: Path, dim: int, rows: int) -> Path:
    """Write an items table of random embeddings."""
    embedder = Embedder(
        model="benchmark", revision="1", pooling="mean", normalised=False, template="", max_length=1, dim=dim
    )
    random = np.random.default_rng(0)
    some_ND = random.standard_normal((2048, dim), np.float32).astype(np.float16)
    starts = range(0, rows, len(some_ND))
    write_items(
        directory,
        embedder,
        (
            ([content_hash(str(row)) for row in range(first, min(first + len(some_ND), rows))],
             some_ND[: rows - first])
            for first in starts
        ),
    )  # fmt: skip
    return directory


def sampler(items: ItemTable, users: int) -> EpisodeSampler:
    """Return a worker's steps of so many users each, whose comparisons are of any items."""
    population = len(items) // COMPARISONS
    random, count = np.random.default_rng(1), population * COMPARISONS
    columns = {
        "user": np.repeat(np.arange(population), COMPARISONS),
        "pair_id": np.arange(count),
        "chosen": random.integers(0, len(items), count),
        "rejected": random.integers(0, len(items), count),
        "weight": np.ones(count),
    }
    comparisons = Comparisons.from_batches([columns], np.arange(population))
    recipe = LoReConfig().recipe.model_copy(update={"users_per_step": users})
    return EpisodeSampler(comparisons, items.gather, recipe, seed=0)


def arrow(directory: Path, dim: int) -> None:
    """Read all embeddings of a table to tensors with pyarrow alone."""
    for path in sorted(directory.glob("part-*.parquet")):
        for chunk in pq.read_table(path, columns=["embedding"]).column(0).chunks:
            torch.from_dlpack(chunk.flatten()).view(-1, dim)


def limits(items: ItemTable, rows: int) -> dict[str, Callable[[], object]]:
    """Return what the machine does at best of either half of a step's work, block by block in warm memory."""
    random = np.random.default_rng(2)
    ids_N = random.integers(0, len(items), rows)
    block = max(1, BLOCK_BYTES // (2 * items.width))
    half_ND = np.empty((block, items.width), np.float16)
    wide_ND = torch.empty(rows, items.width)
    table_ND = items.gather(np.arange(min(len(items), 4 * rows)))

    def look_up() -> None:
        for first in range(0, rows, block):
            own_N = ids_N[first : first + block] % len(table_ND)
            np.take(table_ND, own_N, 0, out=half_ND[: len(own_N)], mode="clip")

    def widen() -> None:
        for block_ND in wide_ND.split(block):
            block_ND.copy_(torch.from_numpy(half_ND[: len(block_ND)]))

    return {"look up": look_up, "widen": widen}


def larger_than_memory(directory: Path, table_bytes: int, users: int, seconds: float) -> dict[str, Any]:
    """Return the rates of a LoRe training in memory and with a third of the table's size."""
    (embeddings,) = Path(os.environ["RAYPREF_CACHE"]).glob("items-*/embeddings.f16")
    found: dict[str, Any] = {"in_memory": _child(directory, users, seconds)}
    limit_bytes = table_bytes // 3
    drop_pages(embeddings)
    width = ItemTable.open(directory).width
    found["limit"] = {
        "is": f"pages of {PAGE_BYTES} bytes read from anywhere, {READERS} at a time",
        "disk_gb_per_s": _disk(embeddings, seconds),
        "pages_per_row": pages_per_row(2 * width),
    }
    drop_pages(embeddings)
    with memory_group(limit_bytes) as group:
        if group is None:
            return {**found, "limited": None, "why": "no control group of our own: needs root"}
        found["limited"] = {"memory_bytes": limit_bytes, **_child(directory, users, seconds, group)}
    return found


def training(directory: Path, users: int, seconds: float) -> dict[str, float]:
    """Return the rates of a LoRe training on a table, from its first step on."""
    items = ItemTable.open(directory)
    config = LoReConfig(recipe=LoReConfig().recipe.model_copy(update={"steps": 10**6}))
    state = start(config.build(Dims(items.width, len(items) // COMPARISONS)), config.recipe)
    state.model.fit_scale(torch.from_numpy(items.sample(256, 0)))
    comparisons, begun_s = 0, time.perf_counter()
    for metrics in train(state, sampler(items, users).stream(), config.recipe, seed=0):
        comparisons += metrics.comparisons
        if time.perf_counter() - begun_s > seconds:
            break
    elapsed_s = time.perf_counter() - begun_s
    return {
        "comparisons_per_s": comparisons / elapsed_s,
        "gb_per_s": comparisons * 4 * items.width / elapsed_s / 1e9,
    }


def _child(directory: Path, users: int, seconds: float, group: Path | None = None) -> dict[str, float]:
    """Train in a process of its own, so that all that it uses counts."""
    command = [__file__, "--steps", directory, "--users", users, "--seconds", seconds]
    return told(python(*command, *(["--group", group] if group else []), timeout_s=900))


def pages_per_row(row_bytes: int) -> float:
    """Return how many pages a row of a flat file stands in, on average."""
    first_N = row_bytes * np.arange(PAGE_BYTES)
    return float(np.mean((first_N + row_bytes - 1) // PAGE_BYTES - first_N // PAGE_BYTES + 1))


def _disk(file: Path, seconds: float) -> float:
    """Return GB/s of single pages read from places anywhere in a file that is not in memory."""
    pages = file.stat().st_size // PAGE_BYTES
    at_N = np.random.default_rng(3).permutation(pages).tolist()
    handle = os.open(file, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
    end_s = time.perf_counter() + seconds

    def read(part: Sequence[int]) -> int:
        counts = (len(os.pread(handle, PAGE_BYTES, page * PAGE_BYTES)) for page in part)
        return sum(itertools.takewhile(lambda _: time.perf_counter() < end_s, counts))

    begun_s = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        total = sum(pool.map(read, (at_N[first::READERS] for first in range(READERS))))
    elapsed_s = time.perf_counter() - begun_s
    os.close(handle)
    return total / elapsed_s / 1e9


def _blocks(episodes: Any) -> list[torch.Tensor]:
    return [
        block
        for pairs in (episodes.context, episodes.target)
        for block in (pairs.chosen_BPD, pairs.rejected_BPD)
    ]


def _rate(run: Callable[[], object], size: int, seconds: float = 0.0) -> float:
    """Return GB/s of something that moves `size` bytes, done once or for so many seconds."""
    begun_s, times = time.perf_counter(), 0
    while not times or time.perf_counter() - begun_s < seconds:
        run()
        times += 1
    return times * size / (time.perf_counter() - begun_s) / 1e9


if __name__ == "__main__":
    sys.exit(main())
