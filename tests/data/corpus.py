"""Small inputs with fake embeddings, and the tables they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from raypref.config import InputConfig, PrepareConfig, RunConfig
from raypref.data.items import write_items
from raypref.data.prepare import prepare
from raypref.data.sources import iter_texts, render
from raypref.data.tables import Tables
from raypref.schema import Embedder, content_hash

TEMPLATE = "{prompt}\n\n{response}"
FAKE = Embedder(
    model="fake", revision="0", pooling="mean", normalised=False, template=TEMPLATE, max_length=8, dim=4
)

Row = dict[str, Any]


def comparison(user: object = "u", chosen: object = "good", rejected: object = "bad", **more: object) -> Row:
    return {"user_id": user, "prompt": "why?", "chosen": chosen, "rejected": rejected, **more}


def ratings(users: int, prompts: int = 3, responses: int = 8, seed: int = 0, share: float = 0.8) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        {
            "user_id": f"user {user}",
            "prompt": f"prompt {prompt}",
            "response": f"answer {response} to {prompt}",
            "rating": int(rng.integers(-1, 2)),
        }
        for user in range(users)
        for prompt in range(prompts)
        for response in range(responses)
        if rng.random() < share
    ]


def comparisons(users: int, each: int = 60, items: int = 20, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for _ in range(each):
            first, second = rng.choice(items, 2, replace=False)
            rows.append(comparison(user, f"text {first}", f"text {second}", prompt=f"prompt {first % 5}"))
    return rows


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_fake_items(directory: Path, config: InputConfig, embedder: Embedder = FAKE) -> None:
    texts = [render(embedder.template, prompt, response) for prompt, response in iter_texts(config)]
    hashes = list(dict.fromkeys(content_hash(text) for text in sorted(texts)))
    emb_ND = np.random.default_rng(0).normal(size=(len(hashes), embedder.dim)).astype(np.float16)
    write_items(directory, embedder, [(hashes, emb_ND)])


def run_config(directory: Path, rows: list[Row], **options: Any) -> RunConfig:
    """Return a run over `rows` whose items stand; the items' order does not depend on that of the rows."""
    directory.mkdir(parents=True, exist_ok=True)
    source = InputConfig(path=write_jsonl(directory / "input.jsonl", rows), batch_rows=50)
    write_fake_items(directory / "items", source)
    options = {"buckets": 4, "max_short_user_share": 1, **options}
    return RunConfig(dir=directory, input=source, prepare=PrepareConfig(**options))


def prepared(directory: Path, rows: list[Row], **options: Any) -> Tables:
    config = run_config(directory, rows, **options)
    prepare(config)
    return Tables.open(config.tables_dir)
