"""A planted population on disk, with an untrained bundle: what it says is as good as any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from raypref import files
from raypref.checkpoint import BUNDLE_USERS_SCHEMA, Bundle, BundleInfo, build, library_versions
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Tables
from raypref.methods.base import MethodConfig
from raypref.methods.lore import LoReConfig
from raypref.methods.vrf import VRFConfig
from raypref.population.output import OutputMetadata
from raypref.schema import Embedder, read_metadata
from raypref.types import Dims
from tests.conftest import terminal_signals

DIM, BUCKETS, USERS = 16, 24, 260
VRF = VRFConfig(bases=3, latent=4, hidden=8, features=4)
LORE = LoReConfig(bases=3, particles=8)
SLOW = LoReConfig(bases=3, solver="adam", adapt_steps=400)


def grow(folder: Path) -> None:
    """Write items and tables below `folder`."""
    planted = configured(folder).planted
    write_planted(planted, folder / "items", folder / "tables", buckets=BUCKETS)


def configured(folder: Path, data: Path | None = None, **population: Any) -> RunConfig:
    data = data or folder
    raw: Mapping[str, Any] = {
        "dir": str(folder),
        "items": str(data / "items"),
        "tables": str(data / "tables"),
        "planted": {
            "dim": DIM,
            "train_prompts": 40,
            "test_prompts": 10,
            "seen_users": 100,
            "unseen_users": USERS - 100,
            "comparisons": 9,
            "valid": 2,
            "shots": 5,
            "test_comparisons": 3,
        },
        "population": {"users_per_part": 20, "workers": 2, **population},
    }
    return parse_config(raw, [], "test")


def save_bundle(
    directory: Path,
    items: ItemTable,
    method: MethodConfig = VRF,
    embedder: Embedder | None = None,
    seed: int = 0,
    dim: int = DIM,
) -> Path:
    model = build(method, Dims(dim, 8), seed)
    model.fit_scale(torch.from_numpy(items.sample(100, 0)[:, :dim]))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name == "weights_SK":
                buffer.copy_(torch.linspace(-1, 1, buffer.numel()).reshape(buffer.shape))
    info = BundleInfo(
        method=method,
        dim=dim,
        users=8,
        embedder=embedder or items.metadata.embedder,
        data_fingerprint="0" * 64,
        steps=0,
        metrics={},
        versions=library_versions(),
    )
    Bundle(model, info, BUNDLE_USERS_SCHEMA.empty_table()).save(directory)
    return directory


def parts_of(directory: Path, folder: str = "parts") -> pa.Table:
    """All rows of an output, in the order of its manifest."""
    metadata = read_metadata(directory, OutputMetadata)
    names = [part.name for part in metadata.parts if part.name.startswith(f"{folder}/")]
    return pa.concat_tables([pq.read_table(directory / name) for name in names])


def contents(directory: Path) -> dict[str, str]:
    """Every file of an output and the sha256 of what is in it."""
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): files.sha256(path) for path in found}


def rows(table: pa.Table, column: str) -> np.ndarray:
    """A column of lists of one length, as an array."""
    return np.array(table[column].to_pylist(), np.float32)


def user_ids(folder: Path) -> Sequence[str]:
    return Tables.open(folder / "tables").users["user_id"].to_pylist()


def wait_for_parts(output: Path, count: int, driver: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a job, that of `driver` or of a thread, has made some parts of an output."""
    end = time.monotonic() + 120
    while len(list(output.parent.glob(f".{output.name}.partial/parts/part-*.parquet"))) < count:
        assert driver is None or driver.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)


def interrupt(command: str, config: RunConfig, output: Path, count: int, how: signal.Signals) -> None:
    """Run a command in a process of its own on the tests' cluster, and stop it once it has made parts."""
    import ray

    description = config.dir / "run.yaml"
    description.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"method"})))
    driver = subprocess.Popen(
        [sys.executable, "-m", "raypref", command, "-c", str(description)],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stderr=subprocess.DEVNULL,
        preexec_fn=terminal_signals,
    )
    wait_for_parts(output, count, driver)
    driver.send_signal(how)
    assert driver.wait(60) != 0
