"""What benchmarks share: their options, their child processes, and how figures are written down."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from raypref import __version__, files

RESULTS = Path(__file__).parent / "results"

FOUND = "FOUND "
"""Begins the line in which a process prints its figures."""


def options(description: str | None, file: str) -> argparse.ArgumentParser:
    """Return a parser that knows `--quick` and `--out`, the folder of the file of figures."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a rehearsal: its figures mean little")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help=f"folder of {file}")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the given options; a rehearsal must not stand among the recorded figures."""
    given = parser.parse_args(arguments)
    if given.quick and given.out == RESULTS:
        parser.error("--quick is a rehearsal: name a folder for its figures with --out")
    return given


def tell(found: Any) -> None:
    """Print the figures of this process for the one that started it."""
    print(f"{FOUND}{json.dumps(found)}", flush=True)


def told(output: str) -> Any:
    """Return the figures among what a process printed.

    Raises:
        ValueError: there are none.
    """
    lines = [line for line in output.splitlines() if line.startswith(FOUND)]
    if not lines:
        raise ValueError(f"no figures among what was printed:\n{output[-2000:]}")
    return json.loads(lines[-1].removeprefix(FOUND))


def python(*arguments: object, timeout_s: float | None = None) -> str:
    """Run Python in a process of its own and return what it printed.

    Raises:
        RuntimeError: it failed.
        subprocess.TimeoutExpired: it took too long.
    """
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


def best_s(work: Callable[[], object]) -> float:
    """Return the least CPU seconds of five calls: what the machine can do."""
    seconds: list[float] = []
    for _ in range(5):
        begun_s = time.process_time()
        work()
        seconds.append(time.process_time() - begun_s)
    return min(seconds)


def surroundings(*libraries: str) -> dict[str, Any]:
    """Return the machine and the versions of Python, raypref and some libraries."""
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "raypref": __version__,
            **{name: version(name) for name in libraries},
        },
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median and the range of figures."""
    return {"median": float(np.median(values)), "range": [float(min(values)), float(max(values))]}


def save(file: Path, found: Mapping[str, Any]) -> None:
    """Write figures as JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, json.dumps(found, indent=1) + "\n")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
