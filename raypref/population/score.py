"""Score for everybody: one list of responses, or every user's own, by the vectors that `adapt` wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raypref import files
from raypref.checkpoint import MANIFEST, Bundle, library_versions
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.errors import ConfigError, CorruptError, MismatchError
from raypref.population.adapt import open_items
from raypref.population.candidates import Candidates
from raypref.population.job import Job, Report
from raypref.population.output import (
    PARTS,
    Output,
    OutputMetadata,
    PartFile,
    PartWriter,
    fixed_lists,
    floats,
)
from raypref.population.plan import Group, Part, spans_before
from raypref.population.reading import offsets_of, read_rows
from raypref.population.vectors import features_of, rewards_of_list, rewards_of_own
from raypref.schema import METADATA_FILE, read_metadata

ITEMS_FILE = "items.parquet"
"""The list that everybody's scores are of, in their order."""

ITEMS_SCHEMA = pa.schema([pa.field("item_id", pa.int64(), nullable=False)])

CELLS = 1 << 22
"""Scores in a row group of a list."""


def score(config: RunConfig) -> Report:
    """Score `population.candidates` for every user in `users_dir` with the run's bundle, into `scores_dir`.

    Killed and run again, it makes only the parts that are missing, and ends in the same bytes; where all of
    it is there already it does nothing.

    Raises:
        InputError: bundle, items, users or candidates are missing, or a candidate is unknown.
        CorruptError: a file of them is damaged.
        MismatchError: they do not belong together, or an interrupted run was of something else.
        ConfigError: no candidates are named.
    """
    config = config.absolute()
    path = config.population.candidates
    if path is None:
        raise ConfigError("population.candidates is not set: name a Parquet file of what is to be scored.")
    bundle = Bundle.load(config.bundle_dir)
    items = open_items(config, bundle)
    fingerprint = files.sha256(config.bundle_dir / MANIFEST)
    users = read_metadata(config.users_dir, OutputMetadata)
    if users.kind != "users":
        raise MismatchError(f"{config.users_dir}: holds {users.kind}, not users; name what `adapt` wrote.")
    if users.source["bundle"] != fingerprint:
        raise MismatchError(
            f"{config.users_dir}: its vectors were inferred by another bundle than {config.bundle_dir}; run "
            "`raypref adapt` with this one first."
        )
    candidates = Candidates.open(path.absolute(), items, users.users)
    source = {
        "bundle": fingerprint,
        "items": files.sha256(config.items_dir / METADATA_FILE),
        "users": files.sha256(config.users_dir / METADATA_FILE),
        "candidates": candidates.identity,
        "versions": library_versions(),
    }
    output = Output(config.scores_dir, "scores", source)
    parts, sources = _plan(users, candidates.groups)
    open_work = partial(
        Scorer, config.bundle_dir, config.items_dir, config.users_dir, output.work, sources, candidates.list_N
    )
    job = Job("score", output, parts, [PARTS], open_work, config.population.workers)
    if candidates.list_N is not None:
        write_items = partial(_write_items, output.work, candidates.list_N)
        job = replace(job, extra=[ITEMS_FILE], prepare=write_items)
    return job.run()


def _write_items(folder: Path, list_N: np.ndarray) -> None:
    with PartWriter(folder, ITEMS_FILE, ITEMS_SCHEMA) as writer:
        writer.write([pa.array(list_N)])


def _plan(users: OutputMetadata, groups: Sequence[Group]) -> tuple[list[Part], list[PartFile]]:
    """Return a part for each file of users, with their own candidates' rows, and these files."""
    sources = [part for part in users.parts if part.name.startswith(f"{PARTS}/")]
    parts: list[Part] = []
    first_user = at = 0
    for number, source in enumerate(sources):
        end_user = first_user + source.rows
        while at < len(groups) and groups[at].last_user < first_user:
            at += 1
        parts.append(Part(number, first_user, end_user, spans_before(groups, at, end_user)))
        first_user = end_user
    return parts, sources


def list_schema(items: int, uncertain: bool) -> pa.Schema:
    """Return the schema of a list's scores: `mean`, and `std` where there is one, in its order."""
    names = ["mean", "std"] if uncertain else ["mean"]
    return pa.schema([*_NAMES, *(pa.field(name, floats(items), nullable=False) for name in names)])


def own_schema(uncertain: bool) -> pa.Schema:
    """Return the schema of own candidates' scores: lists of one length in a row."""
    names = ["mean", "std"] if uncertain else ["mean"]
    own = [pa.field(name, pa.list_(pa.float32()), nullable=False) for name in names]
    return pa.schema([*_NAMES, pa.field("item_id", pa.list_(pa.int64()), nullable=False), *own])


_NAMES = [pa.field("user", pa.int32(), nullable=False), pa.field("user_id", pa.string(), nullable=False)]


class Scorer:
    """One worker: a bundle, the items of its node, and the features of the list."""

    def __init__(
        self,
        bundle: Path,
        items: Path,
        users: Path,
        folder: Path,
        sources: Sequence[PartFile],
        list_N: np.ndarray | None,
    ) -> None:
        """Open everything once.

        Args:
            bundle: whose method scores.
            items: the items table.
            users: what `adapt` wrote.
            folder: where parts gather.
            sources: the file of users of each part.
            list_N: item ids of the list; None where every user has their own candidates.
        """
        loaded = Bundle.load(bundle)
        self._model = loaded.model.requires_grad_(False)
        self._users = users
        self._folder = folder
        self._sources = sources
        self._items = ItemTable.open(items).with_prompts(loaded.info.method.needs_prompts)
        self._list_NF = None if list_N is None else features_of(self._model, self._items, list_N)

    def __call__(self, part: Part) -> tuple[PartFile, ...]:
        """Publish a part."""
        users = self._read_users(self._sources[part.number])
        user_UZ = torch.tensor(_flat(users["vector"]).reshape(part.users, -1))
        if self._list_NF is not None:
            return (self._score_list(part, users, self._list_NF, user_UZ),)
        return (self._score_own(part, users, user_UZ),)

    def _read_users(self, source: PartFile) -> pa.Table:
        path = self._users / source.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptError(f"{path}: cannot be read ({error}); run `raypref adapt` again.") from error
        if hashlib.sha256(data).hexdigest() != source.sha256:
            raise CorruptError(f"{path}: has changed since it was written; run `raypref adapt` again.")
        return pq.read_table(pa.BufferReader(data), columns=["user", "user_id", "vector"], use_threads=False)

    def _score_list(self, part: Part, users: pa.Table, item_NF: Tensor, user_UZ: Tensor) -> PartFile:
        schema = list_schema(len(item_NF), self._model.uncertain)
        rows = max(1, CELLS // len(item_NF))
        with PartWriter(self._folder, f"{PARTS}/{part.name}", schema) as writer:
            for first in range(0, part.users, rows):
                batches = list(rewards_of_list(self._model, item_NF, user_UZ[first : first + rows]))
                columns = [np.concatenate([mean_BN for mean_BN, _ in batches])]
                if self._model.uncertain:
                    columns.append(np.concatenate([std_BN for _, std_BN in batches if std_BN is not None]))
                own = users.slice(first, rows)
                writer.write([own["user"], own["user_id"], *map(fixed_lists, columns)])
        return writer.file

    def _score_own(self, part: Part, users: pa.Table, user_UZ: Tensor) -> PartFile:
        rows = read_rows(part.spans, ["item_id"], part)
        offsets = offsets_of(rows["user"].to_numpy(), part)
        item_M = rows["item_id"].to_numpy().astype(np.int64)
        ids_N, place_M = np.unique(item_M, return_inverse=True)
        item_NF = features_of(self._model, self._items, ids_N)
        mean_M, std_M = rewards_of_own(self._model, item_NF, place_M, offsets, user_UZ)
        columns = [item_M, mean_M] if std_M is None else [item_M, mean_M, std_M]
        lists = [pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(column)) for column in columns]
        with PartWriter(self._folder, f"{PARTS}/{part.name}", own_schema(std_M is not None)) as writer:
            writer.write([users["user"], users["user_id"], *lists])
        return writer.file


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
