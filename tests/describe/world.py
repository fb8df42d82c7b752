"""A small population that likes or dislikes two things alone: length and exclamation marks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raypref.checkpoint import BUNDLE_USERS_SCHEMA, Bundle, BundleInfo, library_versions
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import write_items
from raypref.data.prepare import prepare
from raypref.methods import METHODS
from raypref.schema import Embedder, content_hash
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes, Pairs

DIM, PROMPTS, RESPONSES, USERS, COMPARISONS = 12, 60, 8, 80, 48
TASTES = (2.0, 1.0)
"""Standard deviation over users of the weight of each thing, so the shares are 4 to 1."""
EMBEDDER = Embedder(
    model="planted",
    revision="0",
    pooling="mean",
    normalised=False,
    template="{prompt}\n\n{response}",
    max_length=512,
    dim=DIM,
)
VOCABULARY = "river stone walk slow garden bread cloud paper window green table music summer road lamp story"


@dataclass(frozen=True)
class World:
    config: RunConfig
    pairs: Pairs
    emb_ND: torch.Tensor


def write_texts(seed: int = 0) -> tuple[list[str], list[str], np.ndarray]:
    """Return prompts and responses of all items, and the two things that users care about, in unit scale."""
    rng = np.random.default_rng(seed)
    prompts, responses, things = [], [], []
    for item in range(PROMPTS * RESPONSES):
        length, marks = int(rng.integers(5, 60)), int(rng.integers(0, 7))
        body = " ".join(rng.choice(VOCABULARY.split(), length))
        prompts.append(f"Question {item // RESPONSES}?")
        responses.append(f"{body}{'!' * marks or '.'}")
        things.append((len(responses[-1]), marks))
    things_N2 = np.array(things, float)
    return prompts, responses, (things_N2 - things_N2.mean(0)) / things_N2.std(0)


def grow(folder: Path) -> World:
    rng = np.random.default_rng(1)
    prompts, responses, things_N2 = write_texts()
    emb_ND = 0.5 * rng.normal(size=(len(prompts), DIM))
    emb_ND[:, :2] = things_N2
    emb_ND = (emb_ND @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]).astype(np.float16)
    hashes = [
        content_hash(f"{prompt}\n\n{response}") for prompt, response in zip(prompts, responses, strict=True)
    ]
    write_items(folder / "items", EMBEDDER, [(hashes, emb_ND)])
    taste_U2 = rng.normal(size=(USERS, 2))
    # Of no correlation at all over users, so that the principal axes are the two things.
    taste_U2 = np.array(TASTES) * np.sqrt(USERS) * np.linalg.qr(taste_U2 - taste_U2.mean(0))[0]
    chosen_UP, rejected_UP = np.zeros((2, USERS, COMPARISONS), np.int64)
    rows = []
    for user, taste_2 in enumerate(taste_U2):
        for at in range(COMPARISONS):
            pair = int(rng.integers(PROMPTS)) * RESPONSES + rng.choice(RESPONSES, 2, replace=False)
            gap = float((things_N2[pair[0]] - things_N2[pair[1]]) @ taste_2)
            better, worse = pair if rng.random() < 1 / (1 + np.exp(-2 * gap)) else pair[::-1]
            chosen_UP[user, at], rejected_UP[user, at] = better, worse
            rows.append(
                {
                    "user_id": f"u{user}",
                    "prompt": prompts[better],
                    "chosen": responses[better],
                    "rejected": responses[worse],
                }
            )
    (folder / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(
        {
            "dir": str(folder),
            "input": {"path": str(folder / "comparisons.jsonl")},
            "embed": {"engine": "transformers"},
            "prepare": {"unit": "prompt", "buckets": 2},
        },
        [],
        "test",
    )
    prepare(config)
    emb = torch.from_numpy(emb_ND.astype(np.float32))
    pairs = Pairs(emb[chosen_UP], emb[rejected_UP], torch.ones(USERS, COMPARISONS))
    return World(config, pairs, emb)


def make_bundle(world: World, directory: Path, method: str, steps: int) -> Path:
    """Train a method for a moment on the population and keep its users."""
    config = next(kind for kind in METHODS if kind.model_fields["type"].default == method)()
    torch.manual_seed(0)
    model = config.build(Dims(DIM, USERS))
    model.fit_scale(world.emb_ND)
    pairs = world.pairs
    half = COMPARISONS // 2
    context = Pairs(pairs.chosen_BPD[:, :half], pairs.rejected_BPD[:, :half], pairs.mask_BP[:, :half])
    target = pairs if config.recipe.context[1] == 0 else Pairs(
        pairs.chosen_BPD[:, half:], pairs.rejected_BPD[:, half:], pairs.mask_BP[:, half:]
    )  # fmt: skip
    episodes = Episodes(context, target, torch.arange(USERS))
    model.prime([episodes])
    recipe = config.recipe.model_copy(update={"steps": max(1, steps)})
    state = start(model, recipe)
    for _ in train(state, (episodes for _ in range(steps)), recipe, seed=0):
        pass
    model.eval()
    model.settle([pairs])
    with torch.no_grad():
        user_BZ = model.infer(model.encode(pairs), pairs.mask_BP)
    info = BundleInfo(
        method=config, dim=DIM, users=USERS, embedder=EMBEDDER, data_fingerprint="0" * 64, steps=steps,
        metrics={}, versions=library_versions(),
    )  # fmt: skip
    users = pa.table(
        {
            "user_id": [f"u{user}" for user in range(USERS)],
            "row": range(USERS),
            "comparisons": [COMPARISONS] * USERS,
            "vector": user_BZ.tolist(),
        },
        BUNDLE_USERS_SCHEMA,
    )
    Bundle(model, info, users).save(directory)
    return directory
