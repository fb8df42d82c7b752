"""Adapt everybody: the vector of each user of the tables, from all their comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raypref import files
from raypref.checkpoint import MANIFEST, Bundle, library_versions
from raypref.cluster import connected
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons, Tables
from raypref.errors import MismatchError
from raypref.population.job import Job, Report
from raypref.population.output import PARTS, Output, PartFile, PartWriter, fixed_lists, floats
from raypref.population.plan import Part, plan_users
from raypref.population.reading import PartReader
from raypref.population.vectors import evidence_of, vectors_of
from raypref.schema import METADATA_FILE, Split, require_embedder

if TYPE_CHECKING:
    from raypref.population.store import StoreTarget

EVIDENCE = "evidence"
"""Folder of the evidence, beside `parts`."""


def users_schema(width: int) -> pa.Schema:
    """Return the schema of user vectors, Z = `width`: one row a user, by user."""
    return pa.schema(
        [
            pa.field("user", pa.int32(), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("comparisons", pa.int32(), nullable=False),
            pa.field("vector", floats(width), nullable=False),
        ]
    )


def evidence_schema(width: int) -> pa.Schema:
    """Return the schema of evidence, E = `width`: one row a comparison, by user, then `pair_id`."""
    return pa.schema(
        [
            pa.field("user", pa.int32(), nullable=False),
            pa.field("pair_id", pa.int64(), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
            pa.field("evidence", floats(width), nullable=False),
        ]
    )


def adapt(config: RunConfig) -> Report:
    """Infer the vector of every user of the run's tables with its bundle, and write them to `users_dir`.

    Killed and run again, it makes only the parts that are missing, and ends in the same bytes; where all of
    it is there already it does nothing. With `population.store` each user's comparisons are added to that
    store too, before the part with the user appears, as a running service adds them.

    Raises:
        InputError: bundle, items or tables are missing.
        CorruptError: a file of them is damaged.
        MismatchError: they do not belong together, or an interrupted run was of something else.
        ConfigError: the store cannot be used.
        StoreDown: the store did not answer; what is published stays, run again.
    """
    config = config.absolute()
    options = config.population
    bundle = Bundle.load(config.bundle_dir)
    tables = Tables.open(config.tables_dir)
    items = open_items(config, bundle)
    tables.require_items(items)
    store = _target(config, tables)
    source = {
        "bundle": files.sha256(config.bundle_dir / MANIFEST),
        "items": files.sha256(config.items_dir / METADATA_FILE),
        "tables": tables.metadata.fingerprint,
        "splits": list(options.splits),
        "users_per_part": options.users_per_part,
        "evidence": options.evidence,
        "store": None if store is None else store.claim(bundle.info.embedder),
        "versions": library_versions(),
    }
    output = Output(config.users_dir, "users", source)
    parts = plan_users(tables, options.users_per_part)
    if store is not None:
        store.require_ids(tables)
    open_work = partial(
        Adapter,
        config.bundle_dir, config.items_dir, config.tables_dir, output.work,
        options.splits, options.evidence, store,
    )  # fmt: skip
    folders = [PARTS, EVIDENCE] if options.evidence else [PARTS]
    job = Job("adapt", output, parts, folders, open_work, options.workers)
    if store is None:
        return job.run()
    with connected():
        store.require_nodes()
        return job.run()


def _target(config: RunConfig, tables: Tables) -> StoreTarget | None:
    options = config.population
    if options.store is None:
        return None
    from raypref.population.store import StoreTarget, absolute

    return StoreTarget(absolute(options.store), options.tenant, tables.metadata.fingerprint[:12])


def open_items(config: RunConfig, bundle: Bundle) -> ItemTable:
    """Return the run's items, as the bundle takes them.

    Raises:
        MismatchError: they were made by another embedder, are of another width, or lack prompts that the
            method needs.
    """
    items = ItemTable.open(config.items_dir)
    require_embedder(items.metadata.embedder, bundle.info.embedder, config.items_dir)
    items = items.with_prompts(bundle.info.method.needs_prompts)
    if items.width != bundle.info.dim:
        raise MismatchError(
            f"{config.items_dir}: D = {items.width}, but {config.bundle_dir} takes {bundle.info.dim}; train "
            "it again on these items."
        )
    return items


class Adapter:
    """One worker: a bundle, the items of its node, and the tables."""

    def __init__(
        self,
        bundle: Path,
        items: Path,
        tables: Path,
        folder: Path,
        splits: Sequence[Split],
        evidence: bool,
        store: StoreTarget | None,
    ) -> None:
        """Open everything once.

        Args:
            bundle: whose method adapts.
            items: the items table.
            tables: the prepared tables.
            folder: where parts gather.
            splits: comparisons of which splits users are told by.
            evidence: whether to write the evidence too.
            store: where users go beside the folder.
        """
        loaded = Bundle.load(bundle)
        self._model = loaded.model.requires_grad_(False)
        self._items = ItemTable.open(items).with_prompts(loaded.info.method.needs_prompts)
        self._reader = PartReader(tables, splits)
        self._folder = folder
        self._evidence = evidence
        self._store = None
        if store is not None:
            self._store = store.open(bundle, items)

    def __call__(self, part: Part) -> tuple[PartFile, ...]:
        """Publish a part: evidence first, where it is asked for, then the users."""
        users = self._reader.users(part)
        comparisons = self._reader.comparisons(part, users)
        if self._store is not None:
            self._store.add(users["user_id"], comparisons)
        evidence_ME = evidence_of(self._model, self._items, comparisons)
        vectors_UZ = vectors_of(self._model, evidence_ME, comparisons).numpy()
        written: list[PartFile] = []
        if self._evidence:
            written.append(self._write_evidence(part, comparisons, evidence_ME.numpy()))
        schema = users_schema(vectors_UZ.shape[1])
        with PartWriter(self._folder, f"{PARTS}/{part.name}", schema) as writer:
            counts_U = pa.array(comparisons.counts_U, pa.int32())
            writer.write([users["user"], users["user_id"], counts_U, fixed_lists(vectors_UZ)])
        return *written, writer.file

    def _write_evidence(self, part: Part, comparisons: Comparisons, evidence_ME: np.ndarray) -> PartFile:
        user_M = np.repeat(comparisons.user_U, comparisons.counts_U)
        schema = evidence_schema(evidence_ME.shape[1])
        with PartWriter(self._folder, f"{EVIDENCE}/{part.name}", schema) as writer:
            writer.write(
                [
                    pa.array(user_M, pa.int32()),
                    pa.array(comparisons.pair_M),
                    pa.array(comparisons.weight_M),
                    fixed_lists(evidence_ME),
                ]
            )
        return writer.file
