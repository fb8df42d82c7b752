"""Into a store of users: the records that a running service makes of the same comparisons.

The only place where population jobs know of serving; it is imported where a store is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raypref.data.items import ItemTable
from raypref.data.tables import USERS_FILE, Comparisons, Tables
from raypref.errors import ConfigError, InputError
from raypref.schema import Embedder
from raypref.serve import calls
from raypref.serve.calls import LEARNED_TOGETHER, Items, Learn
from raypref.serve.judge import Judge
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key, Store, owner_digest
from raypref.serve.stores.rules import draw_salt
from raypref.serve.users import Users
from raypref.wire.errors import WireError
from raypref.wire.ids import ID_PATTERN

_ID = re.compile(ID_PATTERN)

TIMEOUT_S = 60.0
"""For which a worker waits until others have committed."""

MOST = 1 << 31
"""Comparisons of a user: the tables decide, not a service's limit."""


def absolute(url: str) -> str:
    """Return the url of the same store for workers whose working directory is another."""
    scheme, _, path = url.partition(":///")
    return f"{scheme}:///{Path(path).absolute()}" if scheme == "sqlite" else url


@dataclass(frozen=True)
class StoreTarget:
    """Where users are added, and as whose."""

    url: str
    tenant: str
    event_prefix: str
    """Begins the ids of comparisons, which end in their `pair_id`; equal tables, and only they, have one."""

    def claim(self, embedder: Embedder) -> str:
        """Say whose embeddings the store keeps, and return what names store and tenant, whatever the url.

        Raises:
            ConfigError: the store cannot be filled by a job, or holds comparisons of another embedder.
            StoreDown: it does not answer.
        """
        if self.url == "memory:":
            raise ConfigError("store memory: ends with the job; name one that lasts: sqlite:///users.db.")
        if not _ID.match(self.tenant):
            raise ConfigError(f"population.tenant {self.tenant!r} is no tenant; it must match {ID_PATTERN}.")
        store = open_store(self.url, timeout_s=TIMEOUT_S)
        try:
            kept = store.setting("embedder", embedder.model_dump_json())
            if kept != embedder.model_dump_json():
                raise ConfigError(
                    f"the store's comparisons were embedded by {kept}, the bundle takes "
                    f"{embedder.model_dump_json()}; use a store of its own for it."
                )
            return owner_digest(store.setting("salt", draw_salt()), Key(self.tenant, ""))
        finally:
            store.close()

    def require_ids(self, tables: Tables) -> None:
        """Raise InputError unless a service could be asked for every user of the tables."""
        path = tables.directory / USERS_FILE
        with pq.ParquetFile(path) as parquet:
            first = 0
            for batch in parquet.iter_batches(columns=["user_id"]):
                fits = [_ID.match(name) is not None for name in batch["user_id"].to_pylist()]
                if not all(fits):
                    raise InputError(
                        f"{path}: row {first + fits.index(False)}: a service takes no such user id; ids "
                        f"must match {ID_PATTERN}. Rename them in the input, and prepare again."
                    )
                first += len(batch)

    def require_nodes(self) -> None:
        """Raise ConfigError where workers on several machines would each fill a file of their own."""
        store = open_store(self.url, timeout_s=TIMEOUT_S)
        nodes, alive = store.nodes, sum(bool(node["Alive"]) for node in ray.nodes())
        store.close()
        if nodes == "one" and alive > 1:
            raise ConfigError(
                f"store {self.url.partition(':')[0]}: is for one machine, this cluster has {alive}; use "
                "postgresql://… or redis://…."
            )

    def open(self, bundle: Path, items: Path) -> StoreWriter:
        """Open the store in a worker."""
        judge = Judge.load(bundle, ItemTable.open(items))
        return StoreWriter(judge, open_store(self.url, timeout_s=TIMEOUT_S), self.tenant, self.event_prefix)


class StoreWriter:
    """Adds users to a store as a service does; what is there already, from a part made twice, stays."""

    def __init__(self, judge: Judge, store: Store, tenant: str, event_prefix: str) -> None:
        """Take a bundle and an open store."""
        self._judge = judge
        self._users = Users(store, MOST)
        self._tenant = tenant
        self._event_prefix = event_prefix

    def add(self, user_id: pa.ChunkedArray, comparisons: Comparisons) -> None:
        """Add all comparisons of some users, durably; who made none is unknown to a service too.

        Raises:
            InputError: a user's comparisons give no finite vector.
            StoreDown: the store does not answer.
        """
        names = user_id.to_pylist()
        for users in _together(comparisons.counts_U):
            given = [self._learn(names[user], comparisons, user) for user in users]
            for user, answer in zip(users, self._users.learn(self._judge, given), strict=True):
                if isinstance(answer, WireError):
                    raise InputError(f"user {comparisons.user_U[user]}: {answer}")

    def _learn(self, name: str, comparisons: Comparisons, user: int) -> Learn:
        own = slice(*comparisons.offsets[user : user + 2])
        stamp_P = np.zeros(0) if comparisons.timestamp_M is None else comparisons.timestamp_M[own]
        given = calls.Comparisons(
            _registered(comparisons.chosen_M[own]),
            _registered(comparisons.rejected_M[own]),
            tuple(f"{self._event_prefix}-{pair}" for pair in comparisons.pair_M[own].tolist()),
            tuple(np.nan_to_num(stamp_P, nan=0.0).tolist()),
            tuple(comparisons.weight_M[own].tolist()),
        )
        return Learn(self._tenant, name, given)


def _registered(row_N: np.ndarray) -> Items:
    return Items(np.zeros((0, 0), np.float16), row_N)


def _together(count_U: np.ndarray) -> Iterator[list[int]]:
    """Yield users who made comparisons, about as many at a time as a service learns in one commit."""
    group: list[int] = []
    held = 0
    for user in np.flatnonzero(count_U).tolist():
        group.append(user)
        held += int(count_U[user])
        if held >= LEARNED_TOGETHER:
            yield group
            group, held = [], 0
    if group:
        yield group
