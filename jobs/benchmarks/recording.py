"""What every record of figures says beside them: which machine, which versions; and how it is written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from raypref import files

RESULTS = Path(__file__).parent / "results"


def surroundings(*libraries: str) -> dict[str, Any]:
    """Return the machine and the versions of Python, raypref and some libraries."""
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("raypref", *libraries)},
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
