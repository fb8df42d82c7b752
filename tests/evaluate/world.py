"""A small population on disk, and a model that needs no training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raypref.data.items import ItemTable, write_items
from raypref.data.tables import COMPARISONS_FOLDER, USERS_FILE, Tables, bucket_file
from raypref.methods.base import RewardModel
from raypref.methods.gaussians import kl
from raypref.schema import (
    COMPARISONS_SCHEMA,
    METADATA_FILE,
    USERS_SCHEMA,
    Embedder,
    TablesMetadata,
    content_hash,
)
from raypref.types import Dims, Episodes, Landscape, Latent, Loss, Reward

DIM, BASES, ITEMS, BUCKETS = 6, 3, 120, 4
EMBEDDER = Embedder(
    model="planted",
    revision="0",
    pooling="mean",
    normalised=False,
    template="{response}",
    max_length=8,
    dim=DIM,
)


@dataclass(frozen=True)
class World:
    items: ItemTable
    tables: Tables


class Tastes(RewardModel):
    """Rewards are K coordinates of the embedding; a user is the posterior of their weights."""

    def __init__(self, personal: bool = True, uncertain: bool = True) -> None:
        super().__init__(Dims(embedding=DIM, users=0))
        self.personal, self.has_variance = personal, uncertain
        self.item_passes, self.evidence_passes = 0, 0

    def item(self, emb_ND: Tensor) -> Tensor:
        self.item_passes += emb_ND.shape[0]
        return self.standardise(emb_ND)[..., :BASES]

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        self.evidence_passes += chosen_ND.shape[0]
        return (self.standardise(chosen_ND) - self.standardise(rejected_ND))[..., :BASES]

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        return torch.cat(self.posterior(evidence_BPE, mask_BP), 1)

    def posterior(self, evidence_BPE: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor]:
        mask_BP = mask_BP if self.personal else torch.zeros_like(mask_BP)
        precision_BK = 1.0 + torch.einsum("bpe,bp->be", evidence_BPE.square(), mask_BP)
        mean_BK = (0.3 + torch.einsum("bpe,bp->be", evidence_BPE, mask_BP)) / precision_BK
        return mean_BK, 1.0 / precision_BK

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        mean_BK, var_BK = user_BZ.unsqueeze(1).chunk(2, -1)
        mean_BN, var_BN = (item_BNF * mean_BK).sum(-1), (item_BNF.square() * var_BK).sum(-1)
        return Reward(mean_BN, var_BN if self.has_variance else None)

    def margin(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Reward:
        return self.reward(chosen_BNF - rejected_BNF, user_BZ)

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        raise AssertionError("not trained in these tests")

    def latent(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Latent | None:
        if not self.has_variance:
            return None
        mean_BL, var_BL = self.posterior(evidence_BPE, mask_BP)
        kl_B = kl(mean_BL, var_BL, torch.zeros(BASES), torch.ones(BASES))
        return Latent(10 * mean_BL, mean_BL, var_BL, kl_B)

    def landscape(self, user_BZ: Tensor) -> Landscape:
        mean_BL, var_BL = user_BZ.chunk(2, -1)
        return Landscape(mean_BL, var_BL, torch.eye(BASES))


def grow(
    folder: Path, seen: int = 30, unseen: int = 25, settings: tuple[str, ...] = ("warm", "cold")
) -> World:
    """Users weigh the first coordinates of an embedding; every user has 1 to 12 training comparisons."""
    rng = np.random.default_rng(7)
    emb_ND = rng.normal(size=(ITEMS, DIM)).astype(np.float16)
    write_items(folder / "items", EMBEDDER, [([content_hash(str(i)) for i in range(ITEMS)], emb_ND)])
    rows: list[tuple[int, int, int, str, float]] = []
    counts: dict[str, int] = {}
    for user in range(seen + unseen):
        taste_D = np.where(np.arange(DIM) == user % BASES, 2.0, 0.3)
        for split, count in {"train": 1 + user % 12, "warm": 6, "cold": user % 4}.items():
            if split not in ("train", *settings):
                continue
            cohort = "seen" if user < seen else "unseen"
            counts[f"{cohort}/{split}"] = counts.get(f"{cohort}/{split}", 0) + count
            for _ in range(count):
                a, b = rng.choice(ITEMS, 2, replace=False)
                gap = (emb_ND[a].astype(float) - emb_ND[b]) @ taste_D
                chosen, rejected = (a, b) if rng.random() < 1 / (1 + np.exp(-gap)) else (b, a)
                rows.append((user, int(chosen), int(rejected), split, float(rng.choice([0.5, 1.0]))))
    _write(folder / "tables", rows, seen, unseen, counts)
    return World(ItemTable.open(folder / "items"), Tables.open(folder / "tables"))


def _write(
    folder: Path, rows: list[tuple[int, int, int, str, float]], seen: int, unseen: int, counts: dict[str, int]
) -> None:
    (folder / COMPARISONS_FOLDER).mkdir(parents=True)
    for bucket in range(BUCKETS):
        mine = [(pair, row) for pair, row in enumerate(rows) if row[0] % BUCKETS == bucket]
        columns = {
            "user": [row[0] for _, row in mine],
            "pair_id": [pair for pair, _ in mine],
            "chosen": [row[1] for _, row in mine],
            "rejected": [row[2] for _, row in mine],
            "split": [row[3] for _, row in mine],
            "weight": [row[4] for _, row in mine],
            "timestamp": [None] * len(mine),
        }
        table = pa.table(columns, schema=COMPARISONS_SCHEMA)
        pq.write_table(table, folder / COMPARISONS_FOLDER / bucket_file(bucket))
    users = range(seen + unseen)
    columns = {
        "user": list(users),
        "user_id": [f"u{user}" for user in users],
        "cohort": ["seen" if user < seen else "unseen" for user in users],
        "row": [user if user < seen else None for user in users],
    }
    for split in ("train", "valid", "warm", "cold"):
        columns[split] = [sum(row[0] == user and row[3] == split for row in rows) for user in users]
    pq.write_table(pa.table(columns, schema=USERS_SCHEMA), folder / USERS_FILE)
    metadata = TablesMetadata(
        embedder=EMBEDDER,
        items=ITEMS,
        fingerprint="0" * 64,
        buckets=BUCKETS,
        seen_users=seen,
        unseen_users=unseen,
        comparisons=counts,
        bad_rows={},
        options={},
    )
    (folder / METADATA_FILE).write_text(metadata.model_dump_json())
