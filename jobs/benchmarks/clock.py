"""Time on one core or one accelerator, and what the device can do at best."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from recording import options, parse

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product is the peak."""

NUMBERS = {"cpu": 2**26, "cuda": 2**30}
"""Float32 numbers that are read to learn the bandwidth."""

QUICK = 8
"""How much smaller both are for a rehearsal."""


def chosen(
    description: str | None, file: str, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, torch.device]:
    """Return a benchmark's options and its device; from now on PyTorch takes one thread."""
    parser = options(description, file)
    parser.add_argument("--device", default="cpu")
    given = parse(parser, arguments)
    torch.set_num_threads(1)
    return given, torch.device(given.device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return what a call takes: CPU time, so that neighbours do not count, or time between a GPU's events."""
    if device.type == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize(device)
    return began.elapsed_time(ended) / 1000


def medians(
    works: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, least_s: float
) -> dict[str, list[float]]:
    """Return seconds of each work in each round, works taking turns, each repeated for `least_s` or more."""
    repeats: dict[str, int] = {}
    for name, work in works.items():
        work()
        repeats[name] = max(1, round(least_s / max(seconds(work, device), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken = [seconds(work, device) for _ in range(repeats[name])]
            found[name].append(statistics.median(taken))
    return found


def peaks(device: torch.device, quick: bool = False) -> dict[str, float]:
    """Return flops of square products in float32 and bfloat16, and bytes read, each per second.

    A processor without bfloat16 takes a minute for one such product; `quick` takes small ones.
    """
    side, numbers = (size[device.type] // (QUICK if quick else 1) for size in (SIDE, NUMBERS))
    found: dict[str, float] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        square = torch.randn(side, side, device=device).to(dtype)
        taken = medians({"": lambda s=square: s @ s}, device, 3, 0.0)[""]
        found[f"{name}_flops"] = 2 * side**3 / statistics.median(taken)
    block = torch.ones(numbers, device=device)
    found["read_bytes"] = 4 * numbers / statistics.median(medians({"": block.sum}, device, 3, 0.0)[""])
    return found
