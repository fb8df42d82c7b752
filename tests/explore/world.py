"""A small world in texts: people who differ in two directions, and a bundle that knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable, write_items
from raypref.data.prepare import prepare
from raypref.data.tables import Tables
from raypref.schema import content_hash
from raypref.train.session import finish
from raypref.train.shards import Shards
from tests.serve.world import embedder_of
from tests.train.runs import session

DIM, PROMPTS, RESPONSES, USERS, COMPARISONS = 8, 40, 4, 120, 40


def embeddings() -> np.ndarray:
    """Items, prompt by prompt; people look at the first two numbers alone."""
    return np.random.default_rng(5).standard_normal((PROMPTS * RESPONSES, DIM)).astype(np.float16)


def tastes(count: int, seed: int) -> np.ndarray:
    """Directions in the plane that people look at."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def text(item: int) -> tuple[str, str]:
    return f"Question {item // RESPONSES}?", f"Answer {item}, on its own."


def grow(folder: Path, **method: Any) -> RunConfig:
    """Write the input, the items, the tables and a bundle; return the run."""
    raw = {
        "dir": str(folder / "run"),
        "input": {"path": str(folder / "comparisons.jsonl")},
        "prepare": {"unit": "prompt", "max_train": COMPARISONS},
        "method": {"type": "lore", "bases": 2, "recipe": {"steps": 120}, **method},
        "train": {"patience": 0},
    }
    config = parse_config(raw, [], "test")
    emb_ND = embeddings()
    hashes = [content_hash("\n\n".join(text(item))) for item in range(len(emb_ND))]
    embedder = embedder_of(DIM).model_copy(update={"template": "{prompt}\n\n{response}"})
    write_items(config.items_dir, embedder, [(hashes, emb_ND)])
    draw = np.random.default_rng(6)
    with (folder / "comparisons.jsonl").open("w") as file:
        for user, taste in enumerate(tastes(USERS, 7)):
            for _ in range(COMPARISONS):
                first, second = draw.integers(PROMPTS) * RESPONSES + draw.permutation(RESPONSES)[:2]
                gap = float((emb_ND[first, :2] - emb_ND[second, :2]) @ taste)
                if draw.random() > 1 / (1 + np.exp(-4 * gap)):
                    first, second = second, first
                prompt, chosen = text(first)
                row = {"user_id": f"u{user}", "prompt": prompt, "chosen": chosen, "rejected": text(second)[1]}
                file.write(json.dumps(row) + "\n")
    prepare(config)
    fit(config)
    return config


def fit(config: RunConfig) -> None:
    """Train the run's method on what lies in its folder, and write the bundle."""
    training = session(config, Shards())
    for _ in training.steps():
        pass
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    finish(config, items, tables, training.state).save(config.bundle_dir)


def another(config: RunConfig, name: str, **method: Any) -> RunConfig:
    """Train another method on the same people; its bundle lies at `name` of the run."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw |= {"method": method, "bundle": str(config.dir / name)}
    changed = parse_config(raw, [], "test")
    fit(changed)
    return changed
