"""Training on a table of items three times the memory that the job is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from limited import drop_pages, memory_group

from raypref import files
from raypref.config import PlantedConfig, RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable, write_items
from raypref.data.planting import planted_embedder
from raypref.data.splits import SPLITS
from raypref.data.writer import TableWriter
from raypref.schema import METADATA_FILE, content_hash
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

DIM, ITEMS, USERS, COMPARISONS = 384, 600_000, 2000, 20
"""A table of 460 MB, any item of which may stand in a comparison."""

CHILD = """
import hashlib, sys, threading, time
from pathlib import Path
import torch
import torch._dynamo
from limited import join
from raypref.config_file import load_config
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.train.session import fit

def own_bytes():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["RssAnon"].split()[0])

def watch():
    while True:
        seen.append(own_bytes())
        time.sleep(0.005)

torch.set_num_threads(1)
config = load_config(Path(sys.argv[1]), [])
# What these import on first use is no part of the job.
Tables.open(config.tables_dir).comparisons("seen", ["valid"])
if sys.argv[2:]:
    join(Path(sys.argv[2]))
seen = [own_bytes()]
threading.Thread(target=watch, daemon=True).start()
model = fit(config, ItemTable.open(config.items_dir), Tables.open(config.tables_dir)).model
found = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    found.update(value.numpy().tobytes())
print(found.hexdigest(), max(seen) - seen[0])
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("large")
    config = parse_config(
        {
            "dir": str(folder),
            "method": {"type": "bt", "recipe": {"steps": 20, "users_per_step": 32}},
            "train": {"validate_every": 10},
            "evaluate": {"users_per_batch": 64},
        },
        [],
        "test",
    )
    random = np.random.default_rng(0)
    some_ND = random.standard_normal((2000, DIM), np.float32).astype(np.float16)
    parts = (
        ([content_hash(str(item)) for item in range(first, first + len(some_ND))], some_ND)
        for first in range(0, ITEMS, len(some_ND))
    )
    items = write_items(config.items_dir, planted_embedder(PlantedConfig(dim=DIM)), parts)
    count, valid = USERS * COMPARISONS, SPLITS.index("valid")
    split = np.where(np.arange(count) % COMPARISONS < 2, valid, SPLITS.index("train"))
    with files.new_directory(config.tables_dir, METADATA_FILE) as directory:
        writer = TableWriter(directory, 1)
        columns = {
            "user": np.repeat(np.arange(USERS), COMPARISONS),
            "pair_id": np.arange(count),
            "chosen": random.integers(0, ITEMS, count),
            "rejected": random.integers(0, ITEMS, count),
            "split": split,
            "weight": np.ones(count),
            "timestamp": np.full(count, np.nan),
        }
        writer.comparisons(0, columns)
        writer.close_bucket(0)
        each = np.bincount(split[:COMPARISONS], minlength=len(SPLITS))
        names = pa.array([str(user) for user in range(USERS)])
        writer.users(names, np.ones(USERS, bool), np.tile(each, (USERS, 1)))
        writer.finish(items, {}, 0, {})
    (folder / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    return config


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def trained(config: RunConfig, cache: Path, group: Path | None = None) -> tuple[str, int]:
    """Return what a process trained, perhaps in a group, and how many bytes of its own it took to do so."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(config.dir / "run.yaml"), *([str(group)] if group else [])],
        env={
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'jobs' / 'benchmarks'}",
            "RAYPREF_CACHE": str(cache),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    weights, added = done.stdout.split()
    return weights, int(added)


def test_a_third_of_the_table_is_enough_memory(
    config: RunConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 2 * DIM * ITEMS // 3
    # Unpacking is once per node, and holds a few files of the table whatever its size.
    monkeypatch.setenv("RAYPREF_CACHE", str(cache))
    ItemTable.open(config.items_dir)
    weights, added = trained(config, cache)
    assert added < limit
    (embeddings,) = cache.glob("items-*/embeddings.f16")
    assert embeddings.stat().st_size >= 3 * limit
    drop_pages(embeddings)
    # What a process holds of its own is one half; the other is the pages of the file, which count too.
    with memory_group(limit) as group:
        if group is None:
            pytest.skip("pages cannot be limited: a control group of our own needs root")
        assert trained(config, cache, group)[0] == weights
