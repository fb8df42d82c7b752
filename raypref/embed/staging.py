"""Embedded texts that no finished table holds yet: progress that survives a kill.

A part is a small items table, so it appears whole or not at all and names its embedder. Parts are found again
by the hashes of their texts, whatever the order in which engines finished them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from raypref.data.items import write_items
from raypref.data.parts import Part
from raypref.data.unpack import keys_of, read_parts
from raypref.errors import MismatchError
from raypref.schema import Embedder, ItemsMetadata, read_metadata, require_embedder

_CHUNK_ROWS = 8192
_CACHED_PARTS = 32


class Staging:
    """The folder of a run's progress, beside the table that it will become."""

    def __init__(self, directory: Path, embedder: Embedder) -> None:
        """Open the folder, made if there is none.

        Raises:
            MismatchError: another embedder made the progress.
            CorruptError: a part is damaged.
        """
        self.directory = directory
        self._embedder = embedder
        self.texts = directory / "texts"
        """Where the texts that are still to be embedded wait for the engines."""
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in directory.glob(".part-*"):
            shutil.rmtree(unfinished)
        shutil.rmtree(self.texts, ignore_errors=True)
        self.texts.mkdir()
        self._paths = sorted(directory.glob("part-*"))
        self._keys: list[np.ndarray] = []
        for path in self._paths:
            self._require_embedder(read_metadata(path, ItemsMetadata))
            self._keys.append(self._read(path)[0])

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    def hashes(self) -> set[bytes]:
        """Return the content hashes of all staged texts."""
        return {hash_ for keys_N in self._keys for hash_ in hashes_of(keys_N)}

    def add(self, hashes: list[bytes], emb_ND: np.ndarray) -> None:
        """Stage a part, atomically."""
        path = self.directory / f"part-{len(self._paths):08d}"
        write_items(path, self._embedder, [(hashes, emb_ND)])
        self._paths.append(path)
        self._keys.append(keys_of(hashes))

    def ordered(self, keys_N: np.ndarray) -> Iterator[Part]:
        """Yield staged embeddings in the order of `keys_N`, all of which are staged."""
        staged_N = np.concatenate(self._keys)
        by_key_N = np.argsort(staged_N, kind="stable")
        at_N = by_key_N[np.searchsorted(staged_N, keys_N, sorter=by_key_N)]
        first_P = np.cumsum([0, *map(len, self._keys)])
        part_N = np.searchsorted(first_P, at_N, side="right") - 1
        read = lru_cache(_CACHED_PARTS)(lambda part: self._read(self._paths[part])[1])
        for start in range(0, len(keys_N), _CHUNK_ROWS):
            chunk = slice(start, start + _CHUNK_ROWS)
            emb_ND = np.empty((len(at_N[chunk]), self._embedder.dim), np.float16)
            for part in np.unique(part_N[chunk]):
                here_N = part_N[chunk] == part
                emb_ND[here_N] = read(int(part))[at_N[chunk][here_N] - first_P[part]]
            yield hashes_of(keys_N[chunk]), emb_ND

    def leave(self) -> None:
        """Delete what a later run does not need: the texts, and the folder where nothing is staged."""
        shutil.rmtree(self.texts, ignore_errors=True)
        if not self._paths:
            self.remove()

    def remove(self) -> None:
        """Delete the folder; its embeddings stand in the table now."""
        shutil.rmtree(self.directory)

    def _require_embedder(self, metadata: ItemsMetadata) -> None:
        try:
            require_embedder(metadata.embedder, self._embedder, self.directory)
        except MismatchError as error:
            raise MismatchError(f"{error} To give up the interrupted run, delete that folder.") from error

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        return next(read_parts(path, read_metadata(path, ItemsMetadata)))


def hashes_of(keys_N: np.ndarray) -> list[bytes]:
    """Return keys as content hashes of full length; numpy's own conversion drops trailing zeros."""
    width = keys_N.dtype.itemsize
    joined = keys_N.tobytes()
    return [joined[start : start + width] for start in range(0, len(joined), width)]
