"""What `raypref adapt` and `raypref score` compute, in one NumPy and PyTorch process without Ray.

    python jobs/benchmarks/population_plain.py RUN OUT THREADS

Reads the tables, the memory-mapped items, the bundle and the candidates below RUN; infers every user from
the training comparisons, scores all candidates for them, and writes vectors and scores as Parquet, bucket
by bucket, so that memory does not grow with users.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from recording import tell

from raypref.checkpoint import Bundle
from raypref.data.items import ItemTable
from raypref.methods.base import RewardModel

ROWS = 4096
"""Comparisons encoded at a time with several threads; one alone does best with what its cache holds."""

USERS = 1024


def main(run: Path, out: Path, threads: int) -> None:
    """Do all of it, and print the seconds that it took."""
    torch.set_num_threads(threads)
    at_once = ROWS if threads > 1 else ROWS // 8
    model, items = Bundle.load(run / "bundle").model, ItemTable.open(run / "items")
    candidates = pq.read_table(run / "candidates.parquet")["item_id"].to_numpy()
    files = sorted((run / "tables" / "comparisons").glob("*.parquet"))
    names = pq.ParquetFile(run / "tables" / "users.parquet")
    for folder in ("users", "scores"):
        (out / folder).mkdir(parents=True)
    begun_s = time.perf_counter()
    item_NF = model.item(torch.from_numpy(items.gather(candidates)))
    user_ids = (batch["user_id"] for batch in names.iter_batches(USERS, columns=["user_id"]))
    held = pa.array([], pa.string())
    for path in files:
        table = pq.read_table(path, columns=["user", "chosen", "rejected", "split", "weight"])
        table = table.filter(pc.field("split") == "train")
        user, first, count = np.unique(table["user"].to_numpy(), return_index=True, return_counts=True)
        while len(held) < len(user):
            held = pa.concat_arrays([held, next(user_ids)])
        vectors: list[torch.Tensor] = []
        means: list[torch.Tensor] = []
        stds: list[torch.Tensor] = []
        evidence_ME = encode(model, items, table["chosen"].to_numpy(), table["rejected"].to_numpy(), at_once)
        weight_M = torch.from_numpy(table["weight"].to_numpy().copy())
        for start in range(0, len(user), USERS):
            count_B = torch.from_numpy(count[start : start + USERS])
            place_P = torch.arange(int(count_B.max()))
            index_BP = torch.from_numpy(first[start : start + USERS])[:, None] + place_P
            mask_BP = place_P < count_B[:, None]
            index_BP = torch.where(mask_BP, index_BP, 0)
            user_BZ = model.infer(evidence_ME[index_BP], torch.where(mask_BP, weight_M[index_BP], 0.0))
            reward = model.reward(item_NF.expand(len(user_BZ), -1, -1), user_BZ)
            vectors.append(user_BZ)
            means.append(reward.mean_BN)
            if reward.var_BN is not None:
                stds.append(reward.var_BN.clamp_min(0).sqrt())
        columns = {"user": pa.array(user), "user_id": held[: len(user)]}
        write(out / "users" / path.name, columns | {"vector": lists(vectors)})
        scores = {"mean": lists(means)} | ({"std": lists(stds)} if stds else {})
        write(out / "scores" / path.name, columns | scores)
        held = held[len(user) :]
    tell({"work_s": time.perf_counter() - begun_s, "cpu_s": time.process_time()})


def encode(
    model: RewardModel, items: ItemTable, chosen_M: np.ndarray, rejected_M: np.ndarray, at_once: int
) -> torch.Tensor:
    """Return evidence_ME."""
    return torch.cat(
        [
            model.evidence(
                torch.from_numpy(items.gather(chosen_M[row : row + at_once])),
                torch.from_numpy(items.gather(rejected_M[row : row + at_once])),
            )
            for row in range(0, len(chosen_M), at_once)
        ]
    )


def lists(parts: list[torch.Tensor]) -> pa.Array:
    """Return rows as an Arrow column."""
    rows = torch.cat(parts).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def write(path: Path, columns: dict[str, pa.Array]) -> None:
    """Write a Parquet file, durably, as raypref does."""
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False)
    with path.open("rb") as file:
        os.fsync(file.fileno())


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
