"""The planted population as tables, written block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypref import files
from raypref.config import PlantedConfig
from raypref.data.items import write_items
from raypref.data.planted import (
    USERS_PER_BLOCK,
    PlantedWorld,
    UserBlock,
    comparisons,
    embed,
    latent_items,
    plant,
    true_rewards,
)
from raypref.data.splits import SPLITS
from raypref.data.writer import TableWriter
from raypref.schema import METADATA_FILE, Embedder, TablesMetadata, content_hash


def write_planted(
    config: PlantedConfig, items_dir: Path, tables_dir: Path, buckets: int = 64
) -> TablesMetadata:
    """Write the population that `config` names as an items table and comparisons tables, atomically.

    Item and user k of the planted world are item id k and user id `str(k)`. Users are dealt to the buckets
    in turn, so every bucket has its part of seen and unseen users.
    """
    world = plant(config)
    items = write_items(items_dir, planted_embedder(config), _items(world))
    with files.new_directory(tables_dir, METADATA_FILE) as directory:
        writer = TableWriter(directory, buckets)
        numbers = _Numbers(config, world.users, buckets)
        for block in comparisons(world, true_rewards(world)):
            for bucket in range(buckets):
                writer.comparisons(bucket, numbers.rows(block, bucket))
        for bucket in range(buckets):
            writer.close_bucket(bucket)
            for index in _chunks(np.arange(bucket, world.users, buckets)):
                names = pa.array(map(str, index.tolist()), pa.string())
                writer.users(names, index < config.seen_users, numbers.counts(index))
        return writer.finish(items, {}, 0, {"planted": config.model_dump(mode="json")})


def planted_embedder(config: PlantedConfig) -> Embedder:
    """Return the identity of a planted embedding; its revision is the hash of the configuration."""
    return Embedder(
        model="planted",
        revision=hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        pooling="none",
        normalised=False,
        template="",
        max_length=1,
        dim=config.dim,
    )


def _items(world: PlantedWorld) -> Iterator[tuple[list[bytes], np.ndarray]]:
    first = 0
    for latent_ND in latent_items(world):
        names = range(first, first + len(latent_ND))
        yield [content_hash(f"planted/{name}") for name in names], embed(world, latent_ND)
        first += len(latent_ND)


def _chunks(index: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(index), USERS_PER_BLOCK):
        yield index[start : start + USERS_PER_BLOCK]


class _Numbers:
    """Numbers of users and pairs in table order, bucket by bucket, known before anything is written."""

    def __init__(self, config: PlantedConfig, users: int, buckets: int) -> None:
        self._config = config
        self._buckets = buckets
        sizes = [len(range(bucket, users, buckets)) for bucket in range(buckets)]
        self._first_user = np.concatenate(([0], np.cumsum(sizes)))
        in_order = np.concatenate([np.arange(bucket, users, buckets) for bucket in range(buckets)])
        total = self.counts(in_order).sum(1)
        self._first_pair = np.concatenate(([0], np.cumsum(total)))

    def counts(self, index: np.ndarray) -> np.ndarray:
        """Return comparisons by split of planted users."""
        config, seen = self._config, index < self._config.seen_users
        counts = {
            "train": np.where(seen, config.comparisons, config.shots),
            "valid": np.where(seen, config.valid, 0),
            "warm": np.zeros(len(index), np.int64),
            "cold": np.full(len(index), config.test_comparisons),
        }
        return np.stack([counts[split] for split in SPLITS], axis=1)

    def rows(self, block: UserBlock, bucket: int) -> dict[str, np.ndarray]:
        """Return a bucket's part of a block as columns of the comparisons table."""
        mine = block.user % self._buckets == bucket
        user = self._first_user[bucket] + block.user[mine] // self._buckets
        place = np.arange(len(user)) - np.searchsorted(user, user)
        return {
            "user": user,
            "pair_id": self._first_pair[user] + place,
            "chosen": block.chosen[mine],
            "rejected": block.rejected[mine],
            "split": block.split[mine],
            "weight": np.ones(len(user)),
            "timestamp": np.full(len(user), np.nan),
        }
