"""Who trains, and what is held out: keyed hashes of names, so no split depends on any other row."""

from __future__ import annotations

import hashlib

import numpy as np

from raypref.config import PrepareConfig
from raypref.schema import Split

SPLITS: tuple[Split, ...] = ("train", "valid", "warm", "cold")
TRAIN, VALID, WARM, COLD = range(4)
STRADDLING = -1
"""Code of a comparison whose two sides fall in different splits."""

KEY_BYTES = 8


def keys_of(hashes: list[bytes]) -> np.ndarray:
    """Return the leading 64 bits of content hashes: the names that splits are drawn by."""
    return np.frombuffer(b"".join(each[:KEY_BYTES] for each in hashes), "<u8")


def mix(left: np.ndarray | np.uint64, right: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of two; not symmetric (the finaliser of splitmix64 after each)."""
    with np.errstate(over="ignore"):
        return _finalise(_finalise(np.asarray(left, np.uint64)) + np.asarray(right, np.uint64))


def _finalise(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Splitter:
    """The split of every user and of every unit (item, prompt or group), by name and seed alone."""

    def __init__(self, config: PrepareConfig) -> None:
        """Split by `config`'s seed and shares."""
        self.config = config

    def keyed(self, purpose: str, key: np.ndarray) -> np.ndarray:
        """Return a hash of each key that only this seed and purpose give."""
        digest = hashlib.blake2b(f"{self.config.seed}/{purpose}".encode(), digest_size=KEY_BYTES).digest()
        return mix(np.frombuffer(digest, "<u8")[0], key)

    def bucket(self, user: np.ndarray) -> np.ndarray:
        """Return the bucket of each user key."""
        return (self.keyed("bucket", user) % np.uint64(self.config.buckets)).astype(np.int64)

    def seen(self, user: np.ndarray) -> np.ndarray:
        """Return whether training meets each user key."""
        return _uniform(self.keyed("cohort", user)) >= self.config.unseen_share

    def split(self, user: np.ndarray, seen: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """Return the split code of each (user key, unit key): cold for all users, else drawn per user."""
        config = self.config
        cold = _uniform(self.keyed("cold", unit)) < config.cold_share
        draw = _uniform(mix(self.keyed("user", user), unit))
        code = np.full(len(unit), TRAIN, np.int8)
        code[seen & (draw < config.warm_share + config.valid_share)] = VALID
        code[draw < config.warm_share] = WARM
        code[cold] = COLD
        return code


def _uniform(key: np.ndarray) -> np.ndarray:
    return (key >> np.uint64(11)) * 2.0**-53
