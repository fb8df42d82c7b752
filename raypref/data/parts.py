"""The files of an items table: rows checked, grouped to a size, written each as one Parquet file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref import files
from raypref.data.unpack import keys_of
from raypref.errors import InputError, MismatchError
from raypref.schema import Embedder, ItemsPart

NORM_TOLERANCE = 1e-2
"""How far from 1 the norm of a normalised vector may be; float16 alone moves it by 1e-3."""

Part = tuple[list[bytes], np.ndarray]
"""Content hashes, and the embeddings of their texts: float16 (N, D)."""


def checked(parts: Iterable[Part], embedder: Embedder) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the keys and the embeddings, float16, of each part, once its vectors are found usable."""
    first = 0
    for hashes, emb_ND in parts:
        if len(hashes) != len(emb_ND):
            raise ValueError(f"{len(hashes)} hashes for {len(emb_ND)} embeddings")
        emb_ND = np.asarray(emb_ND, np.float16)
        check_vectors(emb_ND, embedder, np.arange(first, first + len(hashes)))
        yield keys_of(hashes), emb_ND
        first += len(hashes)


def regroup(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same rows in groups of `rows`; only the last may be smaller."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    missing = rows
    for keys_N, emb_ND in parts:
        while len(keys_N):
            held.append((keys_N[:missing], emb_ND[:missing]))
            keys_N, emb_ND = keys_N[missing:], emb_ND[missing:]
            missing -= len(held[-1][0])
            if not missing:
                yield np.concatenate([k for k, _ in held]), np.concatenate([e for _, e in held])
                held, missing = [], rows
    if held:
        yield np.concatenate([k for k, _ in held]), np.concatenate([e for _, e in held])


def check_vectors(emb_ND: np.ndarray, embedder: Embedder, number_N: np.ndarray) -> None:
    """Refuse vectors that no item may have, by their number.

    Raises:
        InputError: a vector is not finite, is zero, or is not of unit length where it should be.
        MismatchError: the width is not the embedder's.
    """
    if emb_ND.ndim != 2 or emb_ND.shape[1] != embedder.dim:
        raise MismatchError(f"vectors of shape {emb_ND.shape}; {embedder.model} has D = {embedder.dim}.")
    norm_N = np.linalg.norm(emb_ND.astype(np.float32), axis=1)
    largest_N = np.abs(emb_ND).max(1)
    wrong = {
        "is not finite": ~np.isfinite(norm_N),
        "is too large for float16": largest_N > np.finfo(np.float16).max,
        "is zero": largest_N < np.finfo(np.float16).smallest_subnormal,
    }
    if embedder.normalised:
        wrong["is not of unit length"] = np.abs(norm_N - 1) >= NORM_TOLERANCE
    for problem, bad_N in wrong.items():
        if bad_N.any():
            row = int(np.argmax(bad_N))
            raise InputError(f"row {number_N[row]}: the embedding {problem} (norm {norm_N[row]:.4g}).")


def write_part(path: Path, table: pa.Table) -> ItemsPart:
    """Write one file of an items table atomically; it counts once the metadata lists it."""
    sink = pa.BufferOutputStream()
    # Neither dictionaries nor compression make float vectors, hashes or row numbers smaller.
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    data = sink.getvalue().to_pybytes()
    files.write_bytes(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return ItemsPart(name=path.name, rows=table.num_rows, bytes=len(data), sha256=digest)
