"""A worker's training that writes down every comparison the loss is given."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from raypref.methods.lore import PublishedLoRe
from raypref.train.trainer import work as train
from raypref.types import Episodes, Loss

PAUSE_S = "pause_s"
"""Holds the seconds that every loss takes longer, so that there is time to kill the run."""


def work(raw: dict[str, Any]) -> None:
    """Train as `trainer.work` does; what is fed stands in the folder `fed` of the run."""
    folder, loss = Path(raw["config"]["dir"]) / "fed", PublishedLoRe.loss

    def written(self: PublishedLoRe, episodes: Episodes, progress: float) -> Loss:
        target = episodes.target
        real_BP = target.mask_BP > 0
        pairs = zip(target.chosen_BPD[real_BP].numpy(), target.rejected_BPD[real_BP].numpy(), strict=True)
        fed = sorted(fingerprint(*pair) for pair in pairs)
        step = round(progress * self.config.recipe.steps)
        with (folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps([step, episodes.user_B.tolist(), fed]) + "\n")
        time.sleep(float((folder / PAUSE_S).read_text()))
        return loss(self, episodes, progress)

    PublishedLoRe.loss = written
    train(raw)


def fingerprint(chosen_D: np.ndarray, rejected_D: np.ndarray) -> str:
    """Name a comparison by what it compares."""
    both = np.concatenate([chosen_D, rejected_D]).astype(np.float32)
    return hashlib.sha256(both.tobytes()).hexdigest()[:16]


def read(folder: Path) -> Counter[str]:
    """Return how often each comparison was fed; a step that was taken again and fed the same counts once."""
    lines = {line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()}
    return Counter(comparison for line in lines for comparison in json.loads(line)[2])
